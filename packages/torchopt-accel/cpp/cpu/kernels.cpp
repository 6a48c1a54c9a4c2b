// Compiled several times, with TORCHOPT_KERNELS naming the table and other instruction sets
// allowed. Everything here has internal linkage but the table: a function that the linker shared
// with other files could bring in instructions that the processor does not have.
#include "kernels.hpp"

#include <utility>

#include "../rules/half.hpp"
#include "../rules/rules.hpp"

namespace torchopt {
namespace {

// No element depends on another one, although outputs may be inputs.
#if defined(__clang__)
#define TORCHOPT_SIMD _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define TORCHOPT_SIMD _Pragma("GCC ivdep")
#else
#define TORCHOPT_SIMD __pragma(loop(ivdep))
#endif

template <Operation operation, class Step, class S, size_t... I, size_t... O>
void run_streams(const double* coefficients, const S* const* in, S* const* out, int64_t n,
                 std::index_sequence<I...>, std::index_sequence<O...>) {
  const Step step(coefficients);
  const S* const from[] = {in[I]...};
  S* const to[] = {out[O]...};
  TORCHOPT_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const S loaded[] = {from[I][i]...};
    S results[sizeof...(O)];
    evaluate<operation>(step, loaded, results);
    ((to[O][i] = results[O]), ...);
  }
}

template <Operation operation, class Step, class S>
void run(const double* coefficients, const S* const* in, S* const* out, int64_t n) {
  run_streams<operation, Step>(
      coefficients, in, out, n,
      std::make_index_sequence<inputs_of(operation, Step::kStates)>(),
      std::make_index_sequence<outputs_of(operation, Step::kStates)>());
}

template <float (*convert)(uint16_t)>
void load(const uint16_t* from, float* to, int64_t n) {
TORCHOPT_SIMD
  for (int64_t i = 0; i < n; ++i) to[i] = convert(from[i]);
}

template <uint16_t (*convert)(float)>
void store(const float* from, uint16_t* to, int64_t n) {
TORCHOPT_SIMD
  for (int64_t i = 0; i < n; ++i) to[i] = convert(from[i]);
}

}  // namespace

#define TORCHOPT_OPERATIONS(Rule, S)                                  \
  {run<Operation::kForward, Descent<S, Rule>, S>,                     \
   run<Operation::kBackward, Descent<S, Rule>, S>,                    \
   run<Operation::kForwardTangent, Descent<S, Rule>, S>,              \
   run<Operation::kBackwardTangent, Descent<S, Rule>, S>},
#define TORCHOPT_ROW32(Rule, name) TORCHOPT_OPERATIONS(Rule, float)
#define TORCHOPT_ROW64(Rule, name) TORCHOPT_OPERATIONS(Rule, double)

extern const Kernels TORCHOPT_KERNELS;
const Kernels TORCHOPT_KERNELS = {
    {TORCHOPT_RULES(TORCHOPT_ROW32)},
    {TORCHOPT_RULES(TORCHOPT_ROW64)},
    {load<from_float16>, load<from_bfloat16>},
    {store<to_float16>, store<to_bfloat16>},
};

}  // namespace torchopt
