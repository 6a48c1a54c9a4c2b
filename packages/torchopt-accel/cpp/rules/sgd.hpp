// Gradient descent, plain and with momentum (Sutskever et al., 2013).
#pragma once

#include "number.hpp"

namespace torchopt {

// d = g
template <class S>
struct Sgd {
  static constexpr int kStates = 0;

  TORCHOPT_INLINE explicit Sgd(const double*, Root<S>) {}

  template <class T>
  TORCHOPT_INLINE void forward(T g, const T*, T& d, T*) const {
    d = g;
  }

  template <class T>
  TORCHOPT_INLINE void backward(T, const T*, T d_bar, const T*, T& g_bar, T*) const {
    g_bar = d_bar;
  }
};

// b' = decay * b + share * x,  d = now * x + ahead * b'
//
// Momentum has (now, ahead) = (0, 1), Nesterov's (1, decay).
template <class S>
struct Buffer {
  S decay, share, now, ahead;

  TORCHOPT_INLINE explicit Buffer(const double* c)
      : decay(S(c[0])), share(S(c[1])), now(S(c[2])), ahead(S(c[3])) {}

  template <class T>
  TORCHOPT_INLINE void forward(T x, T b, T& d, T& next) const {
    next = decay * b + share * x;
    d = now != S(0) ? now * x + ahead * next : ahead * next;
  }

  template <class T>
  TORCHOPT_INLINE void backward(T d_bar, T next_bar, T& x_bar, T& b_bar) const {
    const T total = next_bar + ahead * d_bar;
    x_bar = now * d_bar + share * total;
    b_bar = decay * total;
  }
};

template <class S>
struct Momentum {
  static constexpr int kStates = 1;
  Buffer<S> buffer;

  TORCHOPT_INLINE explicit Momentum(const double* c, Root<S>) : buffer(c) {}

  template <class T>
  TORCHOPT_INLINE void forward(T g, const T* state, T& d, T* next) const {
    buffer.forward(g, state[0], d, next[0]);
  }

  template <class T>
  TORCHOPT_INLINE void backward(T, const T*, T d_bar, const T* next_bar, T& g_bar,
                                T* state_bar) const {
    buffer.backward(d_bar, next_bar[0], g_bar, state_bar[0]);
  }
};

}  // namespace torchopt
