// Adamax (Kingma, Ba, 2015, Algorithm 2).
#pragma once

#include "number.hpp"

namespace torchopt {

// m' = b1 * m + (1 - b1) * g,  n' = max(b2 * n, |g| + eps),  d = scale * m' / n'
template <class S>
struct Adamax {
  static constexpr int kStates = 2;
  S b1, w1, b2, eps, scale;

  TORCHOPT_INLINE explicit Adamax(const double* c, Root<S>)
      : b1(S(c[0])), w1(S(1 - c[0])), b2(S(c[1])), eps(S(c[2])), scale(S(c[3])) {}

  template <class T>
  TORCHOPT_INLINE void forward(T g, const T* state, T& d, T* next) const {
    const T held = b2 * state[1];
    const T size = direction(g) * g + eps;
    const S kept = share(value(held), value(size));
    next[0] = b1 * state[0] + w1 * g;
    next[1] = select(held, size, kept);
    d = scale * (next[0] / next[1]);
  }

  template <class T>
  TORCHOPT_INLINE void backward(T g, const T* state, T d_bar, const T* next_bar, T& g_bar,
                                T* state_bar) const {
    const T held = b2 * state[1];
    const T size = direction(g) * g + eps;
    const S kept = share(value(held), value(size));
    const T m = b1 * state[0] + w1 * g;
    const T n = select(held, size, kept);
    const T ratio_bar = scale * (d_bar / n);
    const T m_bar = next_bar[0] + ratio_bar;
    const T n_bar = next_bar[1] - ratio_bar * (m / n);
    g_bar = w1 * m_bar + (S(1) - kept) * direction(g) * n_bar;
    state_bar[0] = b1 * m_bar;
    state_bar[1] = kept * b2 * n_bar;
  }

 private:
  // the sign of g, whose derivative is zero
  template <class T>
  TORCHOPT_INLINE S direction(T g) const {
    return value(g) > S(0) ? S(1) : (value(g) < S(0) ? S(-1) : S(0));
  }

  // how much of the maximum is the first operand: all, nothing, or half if they are equal
  TORCHOPT_INLINE S share(S held, S size) const {
    return held > size || held != held ? S(1) : (held == size ? S(0.5) : S(0));
  }

  TORCHOPT_INLINE S select(S held, S size, S kept) const { return kept > S(0) ? held : size; }
  TORCHOPT_INLINE Dual<S> select(Dual<S> held, Dual<S> size, S kept) const {
    return {select(held.x, size.x, kept), kept * held.e + (S(1) - kept) * size.e};
  }
};

}  // namespace torchopt
