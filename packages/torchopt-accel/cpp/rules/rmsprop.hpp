// RMSprop (Tieleman, Hinton, 2012), centered (Graves, arXiv:1308.0850), with momentum.
#pragma once

#include "number.hpp"
#include "sgd.hpp"

namespace torchopt {

// v' = alpha * v + (1 - alpha) * g^2,  q = g / (sqrt(v') + eps)
//
// Centered, with m' = alpha * m + (1 - alpha) * g, the root is of v' - m'^2. The state is
// (v), or (m, v); momentum appends its buffer and makes the direction of q.
template <class S, bool centered, bool buffered>
struct RmsPropOf {
  static constexpr int kMoments = centered ? 2 : 1;
  static constexpr int kStates = kMoments + (buffered ? 1 : 0);
  S alpha, weight, eps;
  Root<S> root;
  Buffer<S> buffer;

  TORCHOPT_INLINE explicit RmsPropOf(const double* c, Root<S> r)
      : alpha(S(c[0])), weight(S(1 - c[0])), eps(S(c[1])), root(r), buffer(c + 2) {}

  template <class T>
  TORCHOPT_INLINE void forward(T g, const T* state, T& d, T* next) const {
    const T v = alpha * state[kMoments - 1] + weight * (g * g);
    next[kMoments - 1] = v;
    T inside = v;
    if constexpr (centered) {
      next[0] = alpha * state[0] + weight * g;
      inside = positive(v - next[0] * next[0]);
    }
    d = g / (root(inside) + eps);
    if constexpr (buffered) buffer.forward(d, state[kMoments], d, next[kMoments]);
  }

  template <class T>
  TORCHOPT_INLINE void backward(T g, const T* state, T d_bar, const T* next_bar, T& g_bar,
                                T* state_bar) const {
    const T v = alpha * state[kMoments - 1] + weight * (g * g);
    T m{}, inside = v;
    if constexpr (centered) {
      m = alpha * state[0] + weight * g;
      inside = positive(v - m * m);
    }
    if constexpr (buffered) {
      buffer.backward(d_bar, next_bar[kMoments], d_bar, state_bar[kMoments]);
    }
    const T r = root(inside);
    const T denominator = r + eps;
    const T ratio_bar = d_bar / denominator;
    const T inside_bar = -(ratio_bar * (g / denominator) * root.slope(inside, r));
    const T v_bar = next_bar[kMoments - 1] + inside_bar;
    g_bar = ratio_bar + S(2) * weight * (g * v_bar);
    state_bar[kMoments - 1] = alpha * v_bar;
    if constexpr (centered) {
      const T m_bar = next_bar[0] - S(2) * (m * inside_bar);
      g_bar = g_bar + weight * m_bar;
      state_bar[0] = alpha * m_bar;
    }
  }

 private:
  // rounding may leave a variance of zero slightly negative
  TORCHOPT_INLINE S positive(S a) const { return a < S(0) ? S(0) : a; }
  TORCHOPT_INLINE Dual<S> positive(Dual<S> a) const {
    return {positive(a.x), a.x < S(0) ? S(0) : a.e};
  }
};

template <class S>
using RmsProp = RmsPropOf<S, false, false>;
template <class S>
using RmsPropMomentum = RmsPropOf<S, false, true>;
template <class S>
using CenteredRmsProp = RmsPropOf<S, true, false>;
template <class S>
using CenteredRmsPropMomentum = RmsPropOf<S, true, true>;

}  // namespace torchopt
