// Adam (Kingma, Ba, 2015), and all that divides its moments: AdamW, RAdam.
#pragma once

#include "number.hpp"

namespace torchopt {

// m' = b1 * m + (1 - b1) * g,  v' = b2 * v + (1 - b2) * g^2,
// d = m' / (slope * sqrt(v' + inside) + offset)
//
// The bias corrections are in slope, inside and offset; RAdam's are zero while it is not adaptive.
template <class S>
struct Adam {
  static constexpr int kStates = 2;
  S b1, w1, b2, w2, inside, slope, offset;
  Root<S> root;

  // 1 - b is taken in double precision: in bfloat16 it would vanish
  TORCHOPT_INLINE explicit Adam(const double* c, Root<S> r)
      : b1(S(c[0])), w1(S(1 - c[0])), b2(S(c[1])), w2(S(1 - c[1])), inside(S(c[2])),
        slope(S(c[3])), offset(S(c[4])), root(r) {}

  template <class T>
  TORCHOPT_INLINE void forward(T g, const T* state, T& d, T* next) const {
    next[0] = b1 * state[0] + w1 * g;
    next[1] = b2 * state[1] + w2 * (g * g);
    // without a slope nothing depends on v, which may have overflowed
    d = next[0] / (slope != S(0) ? slope * root(next[1] + inside) + offset : constant(offset, g));
  }

  template <class T>
  TORCHOPT_INLINE void backward(T g, const T* state, T d_bar, const T* next_bar, T& g_bar,
                                T* state_bar) const {
    const T m = b1 * state[0] + w1 * g;
    const T v = b2 * state[1] + w2 * (g * g) + inside;
    const T r = root(v);
    const T denominator = slope != S(0) ? slope * r + offset : constant(offset, g);
    const T ratio_bar = d_bar / denominator;
    const T m_bar = next_bar[0] + ratio_bar;
    const T v_bar = slope != S(0)
        ? next_bar[1] - slope * (ratio_bar * (m / denominator) * root.slope(v, r))
        : next_bar[1];
    g_bar = w1 * m_bar + S(2) * w2 * (g * v_bar);
    state_bar[0] = b1 * m_bar;
    state_bar[1] = b2 * v_bar;
  }
};

}  // namespace torchopt
