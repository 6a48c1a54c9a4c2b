// Chooses the kernels for the processor, once.
#include "kernels.hpp"

namespace torchopt {

extern const Kernels kernels_baseline;
#if defined(TORCHOPT_HAVE_AVX2)
extern const Kernels kernels_avx2;
#endif

namespace {

bool has_avx2() {
#if defined(TORCHOPT_HAVE_AVX2)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
#else
  return false;
#endif
}

const bool kAvx2 = has_avx2();

}  // namespace

const Kernels& kernels() {
#if defined(TORCHOPT_HAVE_AVX2)
  if (kAvx2) return kernels_avx2;
#endif
  return kernels_baseline;
}

const char* instruction_set() { return kAvx2 ? "avx2" : "baseline"; }

}  // namespace torchopt
