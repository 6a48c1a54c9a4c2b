// The innermost loops, compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "../plan.hpp"

namespace torchopt {

struct Kernels {
  // Evaluates `n` elements; streams may be equal, but do not overlap otherwise.
  using Run32 = void (*)(const double* coefficients, const float* const* in, float* const* out,
                         int64_t n);
  using Run64 = void (*)(const double* coefficients, const double* const* in, double* const* out,
                         int64_t n);
  Run32 run32[kRules][kOperations];
  Run64 run64[kRules][kOperations];
  void (*load16[2])(const uint16_t* from, float* to, int64_t n);   // float16, bfloat16
  void (*store16[2])(const float* from, uint16_t* to, int64_t n);  // float16, bfloat16
};

// The kernels for the processor at hand.
const Kernels& kernels();
const char* instruction_set();

}  // namespace torchopt
