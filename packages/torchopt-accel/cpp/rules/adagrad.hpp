// Adagrad (Duchi, Hazan, Singer, 2011).
#pragma once

#include "number.hpp"

namespace torchopt {

// v' = v + g^2,  d = g / (slope * sqrt(v') + offset)
template <class S>
struct Adagrad {
  static constexpr int kStates = 1;
  S slope, offset;
  Root<S> root;

  TORCHOPT_INLINE explicit Adagrad(const double* c, Root<S> r)
      : slope(S(c[0])), offset(S(c[1])), root(r) {}

  template <class T>
  TORCHOPT_INLINE void forward(T g, const T* state, T& d, T* next) const {
    next[0] = state[0] + g * g;
    d = g / (slope * root(next[0]) + offset);
  }

  template <class T>
  TORCHOPT_INLINE void backward(T g, const T* state, T d_bar, const T* next_bar, T& g_bar,
                                T* state_bar) const {
    const T v = state[0] + g * g;
    const T r = root(v);
    const T denominator = slope * r + offset;
    const T ratio_bar = d_bar / denominator;
    const T v_bar = next_bar[0] - slope * (ratio_bar * (g / denominator) * root.slope(v, r));
    g_bar = ratio_bar + S(2) * (g * v_bar);
    state_bar[0] = v_bar;
  }
};

}  // namespace torchopt
