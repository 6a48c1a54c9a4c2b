// Many tensors on the processor: leaves are cut into chunks, and chunks are shared among threads.
#include "driver.hpp"

#include <algorithm>

#include "kernels.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace torchopt {
namespace {

// Elements that are evaluated together: what is staged for them stays in the cache.
constexpr int64_t kChunk = 1024;
// A thread is not worth waking for fewer elements; torch has the same grain.
constexpr int64_t kGrain = 32768;

// Results of more bytes than this go around the caches: they would not stay there, and writing
// through the caches first reads what is overwritten.
constexpr int64_t kStream = int64_t(8) << 20;

// What stands for absent streams and for those of 16 bits.
template <class S>
struct Stage {
  alignas(64) S zeros[kChunk];
  alignas(64) S unused[kChunk];
  alignas(64) S in[kMaxInputs][kChunk];
  alignas(64) S out[kMaxOutputs][kChunk];
};

template <class S>
Stage<S>& stage() {
  static thread_local Stage<S> instance;  // zeros
  return instance;
}

// Copies past the caches.
template <class S>
void stream(const S* from, S* to, int64_t n) {
  int64_t i = 0;
#if defined(__SSE2__)
  while (i < n && reinterpret_cast<uintptr_t>(to + i) % 16 != 0) {
    to[i] = from[i];
    ++i;
  }
  for (constexpr int64_t step = 16 / sizeof(S); i + step <= n; i += step) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
#endif
  std::copy(from + i, from + n, to + i);
}

// Orders streamed results before whatever tells others that they are there.
void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Whether an output can be streamed: it is not an input, which is in the cache.
bool can_stream(const Plan& plan, const Leaf& leaf, int output) {
  const void* to = leaf.out[output];
  return to != nullptr &&
         std::find(leaf.in, leaf.in + plan.inputs, to) == leaf.in + plan.inputs;
}

// Elements begin to end of a leaf whose streams hold the type that is computed in.
template <class S, class Run>
void run_direct(const Plan& plan, const Leaf& leaf, int64_t begin, int64_t end, bool large,
                Run run) {
  const S* in[kMaxInputs];
  S* out[kMaxOutputs];
  bool streamed[kMaxOutputs];
  bool staged = false;
  for (int k = 0; k < plan.outputs; ++k) {
    streamed[k] = large && can_stream(plan, leaf, k);
    staged = staged || streamed[k] || leaf.out[k] == nullptr;
  }
  for (int k = 0; k < plan.inputs; ++k) staged = staged || leaf.in[k] == nullptr;
  const double* coefficients = plan.coefficients[leaf.coefficients].values;
  const int64_t chunk = staged ? kChunk : end - begin;
  for (int64_t i = begin; i < end; i += chunk) {
    const int64_t n = std::min(chunk, end - i);
    for (int k = 0; k < plan.inputs; ++k) {
      in[k] = leaf.in[k] != nullptr ? static_cast<const S*>(leaf.in[k]) + i : stage<S>().zeros;
    }
    for (int k = 0; k < plan.outputs; ++k) {
      out[k] = leaf.out[k] == nullptr ? stage<S>().unused
               : streamed[k]          ? stage<S>().out[k]
                                      : static_cast<S*>(leaf.out[k]) + i;
    }
    run(coefficients, in, out, n);
    for (int k = 0; k < plan.outputs; ++k) {
      if (streamed[k]) stream(out[k], static_cast<S*>(leaf.out[k]) + i, n);
    }
  }
}

// The same for streams of 16 bits, which are computed in float32.
void run_half(const Plan& plan, const Leaf& leaf, int64_t begin, int64_t end, Kernels::Run32 run) {
  const int format = leaf.dtype == Dtype::kFloat16 ? 0 : 1;
  Stage<float>& staged = stage<float>();
  const float* in[kMaxInputs];
  float* out[kMaxOutputs];
  for (int k = 0; k < plan.inputs; ++k) {
    in[k] = leaf.in[k] != nullptr ? staged.in[k] : staged.zeros;
  }
  for (int k = 0; k < plan.outputs; ++k) out[k] = staged.out[k];
  for (int64_t i = begin; i < end; i += kChunk) {
    const int64_t n = std::min(kChunk, end - i);
    for (int k = 0; k < plan.inputs; ++k) {
      const auto* from = static_cast<const uint16_t*>(leaf.in[k]);
      if (from != nullptr) kernels().load16[format](from + i, staged.in[k], n);
    }
    run(plan.coefficients[leaf.coefficients].values, in, out, n);
    for (int k = 0; k < plan.outputs; ++k) {
      auto* to = static_cast<uint16_t*>(leaf.out[k]);
      if (to != nullptr) kernels().store16[format](staged.out[k], to + i, n);
    }
  }
}

void run_part(const Plan& plan, const Leaf& leaf, int64_t begin, int64_t end, bool large) {
  const int operation = static_cast<int>(plan.operation);
  const auto run32 = kernels().run32[plan.rule][operation];
  switch (leaf.dtype) {
    case Dtype::kFloat32: return run_direct<float>(plan, leaf, begin, end, large, run32);
    case Dtype::kFloat64:
      return run_direct<double>(plan, leaf, begin, end, large,
                                kernels().run64[plan.rule][operation]);
    case Dtype::kFloat16:
    case Dtype::kBFloat16: return run_half(plan, leaf, begin, end, run32);
  }
}

// Elements begin to end of all leaves, one after the other.
void run_range(const Plan& plan, int64_t begin, int64_t end, bool large) {
  int64_t start = 0;
  for (const Leaf& leaf : plan.leaves) {
    const int64_t from = std::max(begin, start) - start;
    const int64_t to = std::min(end - start, leaf.size);
    if (from < to) run_part(plan, leaf, from, to, large);
    start += leaf.size;
    if (start >= end) break;
  }
  if (large) finish_streams();
}

}  // namespace

bool has_threads() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

void run_cpu(const Plan& plan, int threads) {
  int64_t total = 0, bytes = 0;
  for (const Leaf& leaf : plan.leaves) {
    total += leaf.size;
    bytes += leaf.size * kItemSize[int(leaf.dtype)];
  }
  const bool large = bytes * plan.outputs > kStream;
#if defined(_OPENMP)
  const int64_t parts = std::min<int64_t>(threads, total / kGrain);
  if (parts > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(static_cast<int>(parts))
    {
      // what the runtime grants may be less than what was asked for
      const int64_t count = omp_get_num_threads(), i = omp_get_thread_num();
      // cuts are at multiples of a cache line, so no two threads write to one
      const auto cut = [&](int64_t k) { return k == count ? total : total * k / count / 64 * 64; };
      run_range(plan, cut(i), cut(i + 1), large);
    }
    return;
  }
#else
  (void)threads;
#endif
  run_range(plan, 0, total, large);
}

}  // namespace torchopt
