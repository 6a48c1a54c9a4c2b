// Enough of CUDA to run the driver's kernels on the processor, one thread after the other.
#pragma once

#include <cmath>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __grid_constant__

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;

inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

struct Index {
  unsigned x;
};
inline Index blockIdx, threadIdx;

template <class Kernel, class Argument>
void emulate(Kernel kernel, int blocks, int threads, const Argument& argument) {
  for (int block = 0; block < blocks; ++block) {
    for (int thread = 0; thread < threads; ++thread) {
      blockIdx.x = block;
      threadIdx.x = thread;
      kernel(argument);
    }
  }
}

#define TORCHOPT_LAUNCH(kernel, blocks, threads, stream, argument) \
  emulate(kernel, blocks, threads, argument)
