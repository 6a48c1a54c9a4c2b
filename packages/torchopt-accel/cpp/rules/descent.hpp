// The step around a rule: sign, weight decay, learning rate, and the parameters.
//
// With g the gradient, p the parameter and d the direction that a rule makes,
//
//     out = alpha * p + beta * d(sign * g + decay * p, state).
//
// A step is alpha = 1, beta = -lr; decoupled weight decay is alpha = 1 - lr * decay; updates that
// somebody else adds to the parameters leave p out of alpha.
#pragma once

#include "number.hpp"

namespace torchopt {

// The coefficients of a step: sign, decay, alpha, beta, whether roots are lifted (see Root). Those
// of the rule follow.
constexpr int kDescentCoefficients = 5;
constexpr int kRuleCoefficients = 8;
constexpr int kCoefficients = kDescentCoefficients + kRuleCoefficients;

template <class S, template <class> class Rule>
struct Descent {
  static constexpr int kStates = Rule<S>::kStates;

  S sign, decay, alpha, beta;
  Rule<S> rule;

  TORCHOPT_INLINE explicit Descent(const double* c)
      : sign(S(c[0])), decay(S(c[1])), alpha(S(c[2])), beta(S(c[3])),
        rule(c + kDescentCoefficients, Root<S>(c[4] != 0)) {}

  // g + decay * p; a parameter that does not decay may be infinite
  template <class T>
  TORCHOPT_INLINE T effective(T g, T p) const {
    const T ascent = sign * g;
    return decay != S(0) ? ascent + decay * p : ascent;
  }

  // (g, p, state...) -> (out, next state...)

  template <class T>
  TORCHOPT_INLINE void forward(const T* in, T* out) const {
    T d;
    rule.forward(effective(in[0], in[1]), in + 2, d, out + 1);
    out[0] = alpha != S(0) ? alpha * in[1] + beta * d : beta * d;
  }

  // (g, p, state..., cotangents of out and next state...) -> (cotangents of g, p, state...)

  template <class T>
  TORCHOPT_INLINE void backward(const T* in, T* out) const {
    const T out_bar = in[2 + kStates];
    T g_bar;
    rule.backward(effective(in[0], in[1]), in + 2, beta * out_bar, in + 3 + kStates, g_bar,
                  out + 2);
    out[0] = sign * g_bar;
    out[1] = decay != S(0) ? alpha * out_bar + decay * g_bar : alpha * out_bar;
  }
};

}  // namespace torchopt
