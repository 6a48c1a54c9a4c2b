// The list of rules: a row here is all that the drivers need to know of one.
#pragma once

#include "adadelta.hpp"
#include "adagrad.hpp"
#include "adam.hpp"
#include "adamax.hpp"
#include "descent.hpp"
#include "rmsprop.hpp"
#include "sgd.hpp"

// X(type, name)
#define TORCHOPT_RULES(X)                                     \
  X(Sgd, "sgd")                                               \
  X(Momentum, "momentum")                                     \
  X(RmsProp, "rmsprop")                                       \
  X(RmsPropMomentum, "rmsprop_momentum")                      \
  X(CenteredRmsProp, "centered_rmsprop")                      \
  X(CenteredRmsPropMomentum, "centered_rmsprop_momentum")     \
  X(Adam, "adam")                                             \
  X(Adagrad, "adagrad")                                       \
  X(Adadelta, "adadelta")                                     \
  X(Adamax, "adamax")

namespace torchopt {

#define TORCHOPT_COUNT(type, name) +1
constexpr int kRules = 0 TORCHOPT_RULES(TORCHOPT_COUNT);
#undef TORCHOPT_COUNT

constexpr int kMaxStates = 3;

// What is computed of a step. A tangent takes the inputs of its operation and then a tangent for
// each, and returns the tangents of its outputs.
enum class Operation : int { kForward, kBackward, kForwardTangent, kBackwardTangent };
constexpr int kOperations = 4;

constexpr int inputs_of(Operation operation, int states) {
  return operation == Operation::kForward           ? 2 + states
         : operation == Operation::kBackward        ? 3 + 2 * states
         : operation == Operation::kForwardTangent  ? 2 * (2 + states)
                                                    : 2 * (3 + 2 * states);
}

constexpr int outputs_of(Operation operation, int states) {
  return operation == Operation::kForward || operation == Operation::kForwardTangent ? 1 + states
                                                                                     : 2 + states;
}

constexpr int kMaxInputs = inputs_of(Operation::kBackwardTangent, kMaxStates);
constexpr int kMaxOutputs = outputs_of(Operation::kBackwardTangent, kMaxStates);

// One element: from loaded inputs to outputs.
template <Operation operation, class Step, class S>
TORCHOPT_INLINE void evaluate(const Step& step, const S* in, S* out) {
  if constexpr (operation == Operation::kForward) {
    step.forward(in, out);
  } else if constexpr (operation == Operation::kBackward) {
    step.backward(in, out);
  } else {
    constexpr int inputs = inputs_of(operation, Step::kStates) / 2;
    constexpr int outputs = outputs_of(operation, Step::kStates);
    Dual<S> dual_in[inputs], dual_out[outputs];
    for (int k = 0; k < inputs; ++k) dual_in[k] = {in[k], in[inputs + k]};
    if constexpr (operation == Operation::kForwardTangent) {
      step.forward(dual_in, dual_out);
    } else {
      step.backward(dual_in, dual_out);
    }
    for (int k = 0; k < outputs; ++k) out[k] = dual_out[k].e;
  }
}

}  // namespace torchopt
