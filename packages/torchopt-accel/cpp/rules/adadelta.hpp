// Adadelta (Zeiler, arXiv:1212.5701, Algorithm 1).
#pragma once

#include "number.hpp"

namespace torchopt {

// v' = rho * v + (1 - rho) * g^2,  d = g * sqrt(u + eps) / sqrt(v' + eps),
// u' = rho * u + (1 - rho) * d^2
template <class S>
struct Adadelta {
  static constexpr int kStates = 2;
  S rho, weight, eps;
  Root<S> root;

  TORCHOPT_INLINE explicit Adadelta(const double* c, Root<S> r)
      : rho(S(c[0])), weight(S(1 - c[0])), eps(S(c[1])), root(r) {}

  template <class T>
  TORCHOPT_INLINE void forward(T g, const T* state, T& d, T* next) const {
    next[0] = rho * state[0] + weight * (g * g);
    d = root(state[1] + eps) / root(next[0] + eps) * g;
    next[1] = rho * state[1] + weight * (d * d);
  }

  template <class T>
  TORCHOPT_INLINE void backward(T g, const T* state, T d_bar, const T* next_bar, T& g_bar,
                                T* state_bar) const {
    const T u = state[1] + eps;
    const T v = rho * state[0] + weight * (g * g) + eps;
    const T u_root = root(u);
    const T v_root = root(v);
    const T ratio = u_root / v_root;
    const T total = d_bar + S(2) * weight * (ratio * g * next_bar[1]);
    const T per_root = total * g / v_root;
    const T v_bar = next_bar[0] - per_root * ratio * root.slope(v, v_root);
    g_bar = ratio * total + S(2) * weight * (g * v_bar);
    state_bar[0] = rho * v_bar;
    state_bar[1] = rho * next_bar[1] + per_root * root.slope(u, u_root);
  }
};

}  // namespace torchopt
