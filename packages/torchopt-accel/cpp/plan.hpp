// What a call asks of a driver: leaves, their addresses, and the coefficients of their steps.
#pragma once

#include <cstdint>
#include <vector>

#include "rules/rules.hpp"

namespace torchopt {

enum class Dtype : int { kFloat32, kFloat64, kFloat16, kBFloat16 };
constexpr int kItemSize[] = {4, 8, 2, 2};

// One leaf. A null input reads as zeros, a null output is not written.
struct Leaf {
  int64_t size;
  Dtype dtype;
  int coefficients;  // a row of Plan::coefficients
  const void* in[kMaxInputs];
  void* out[kMaxOutputs];
};

struct Coefficients {
  double values[kCoefficients];
};

struct Plan {
  int rule;
  Operation operation;
  int inputs, outputs;
  std::vector<Coefficients> coefficients;
  std::vector<Leaf> leaves;
};

}  // namespace torchopt
