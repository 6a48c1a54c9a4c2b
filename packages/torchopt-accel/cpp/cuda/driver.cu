// Many tensors on a CUDA device: a launch takes as many leaves as fit into its arguments, so
// nothing is copied to the device, nothing is waited for, and a CUDA graph can capture it.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../rules/half.hpp"
#include "driver.hpp"

// The tests run this file on the processor, with another way to launch.
#if !defined(TORCHOPT_LAUNCH)
#define TORCHOPT_LAUNCH(kernel, blocks, threads, stream, argument) \
  kernel<<<blocks, threads, 0, stream>>>(argument)
#endif

namespace torchopt {
namespace {

constexpr int kThreads = 256;
// Elements that a thread evaluates: independent loads hide the latency of memory.
constexpr int kUnroll = 4;
constexpr int kBlock = kThreads * kUnroll;
// Devices take 4 KiB of arguments; what is left is for the rest of a launch.
constexpr int kArgumentBytes = 3200;
// Distinct rows of coefficients in a launch.
constexpr int kRows = 4;

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

template <int inputs, int outputs>
struct Arguments {
  const void* in[inputs];
  void* out[outputs];
  int64_t size;
  int first_block;
  int16_t dtype;
  int16_t row;
};

template <Operation operation, class Step>
struct Launch {
  static constexpr int kInputs = inputs_of(operation, Step::kStates);
  static constexpr int kOutputs = outputs_of(operation, Step::kStates);
  using Leaves = Arguments<kInputs, kOutputs>;
  static constexpr int kLeaves = kArgumentBytes / int(sizeof(Leaves));

  Leaves leaves[kLeaves];
  Step steps[kRows];
  int count, blocks;
};

__device__ __forceinline__ double read(const void* from, int64_t i, int16_t, double) {
  return static_cast<const double*>(from)[i];
}

__device__ __forceinline__ float read(const void* from, int64_t i, int16_t dtype, float) {
  if (dtype == int16_t(Dtype::kFloat32)) return static_cast<const float*>(from)[i];
  const uint16_t bits = static_cast<const uint16_t*>(from)[i];
  return dtype == int16_t(Dtype::kFloat16) ? from_float16(bits) : from_bfloat16(bits);
}

__device__ __forceinline__ void write(void* to, int64_t i, int16_t, double value) {
  static_cast<double*>(to)[i] = value;
}

__device__ __forceinline__ void write(void* to, int64_t i, int16_t dtype, float value) {
  if (dtype == int16_t(Dtype::kFloat32)) {
    static_cast<float*>(to)[i] = value;
  } else {
    static_cast<uint16_t*>(to)[i] =
        dtype == int16_t(Dtype::kFloat16) ? to_float16(value) : to_bfloat16(value);
  }
}

template <Operation operation, class Step, class S>
__global__ void __launch_bounds__(kThreads)
    evaluate_leaves(const __grid_constant__ Launch<operation, Step> launch) {
  using Shape = Launch<operation, Step>;
  static_assert(sizeof(Shape) <= 4096, "the arguments of a launch");
  const int block = int(blockIdx.x);
  int found = 0;
  while (found + 1 < launch.count && launch.leaves[found + 1].first_block <= block) ++found;
  const auto& leaf = launch.leaves[found];
  const Step& step = launch.steps[leaf.row];
  const int64_t start = int64_t(block - leaf.first_block) * kBlock + threadIdx.x;

  S in[kUnroll][Shape::kInputs];
#pragma unroll
  for (int j = 0; j < kUnroll; ++j) {
    const int64_t i = start + int64_t(j) * kThreads;
#pragma unroll
    for (int k = 0; k < Shape::kInputs; ++k) {
      const bool there = i < leaf.size && leaf.in[k] != nullptr;
      in[j][k] = there ? read(leaf.in[k], i, leaf.dtype, S()) : S(0);
    }
  }
#pragma unroll
  for (int j = 0; j < kUnroll; ++j) {
    const int64_t i = start + int64_t(j) * kThreads;
    if (i >= leaf.size) return;
    S out[Shape::kOutputs];
    evaluate<operation>(step, in[j], out);
#pragma unroll
    for (int k = 0; k < Shape::kOutputs; ++k) {
      if (leaf.out[k] != nullptr) write(leaf.out[k], i, leaf.dtype, out[k]);
    }
  }
}

// Collects leaves until a launch is full.
template <Operation operation, class Step, class S>
class Queue {
 public:
  Queue(const Plan& plan, cudaStream_t stream)
      : plan_(plan), stream_(stream), launch_(new_launch()) {}

  void add(const Leaf& leaf) {
    constexpr int64_t most = int64_t(1) << 30;  // blocks; a leaf of more is far beyond any memory
    const int64_t blocks = (leaf.size + kBlock - 1) / kBlock;
    if (blocks > most) throw std::runtime_error("a leaf is too large for a launch");
    if (launch_.count == Shape::kLeaves || launch_.blocks + blocks > most ||
        (row_of(leaf) < 0 && rows_.size() == kRows)) {
      flush();
    }
    int row = row_of(leaf);
    if (row < 0) {
      row = int(rows_.size());
      rows_.push_back(leaf.coefficients);
      launch_.steps[row] = Step(plan_.coefficients[leaf.coefficients].values);
    }
    auto& added = launch_.leaves[launch_.count++];
    std::copy(leaf.in, leaf.in + Shape::kInputs, added.in);
    std::copy(leaf.out, leaf.out + Shape::kOutputs, added.out);
    added.size = leaf.size;
    added.first_block = launch_.blocks;
    added.dtype = int16_t(leaf.dtype);
    added.row = int16_t(row);
    launch_.blocks += int(blocks);
  }

  void flush() {
    if (launch_.blocks > 0) {
      const auto kernel = evaluate_leaves<operation, Step, S>;
      TORCHOPT_LAUNCH(kernel, launch_.blocks, kThreads, stream_, launch_);
      check(cudaGetLastError());
    }
    launch_.count = launch_.blocks = 0;
    rows_.clear();
  }

 private:
  using Shape = Launch<operation, Step>;

  static Shape new_launch() {
    const double zeros[kCoefficients] = {};
    const Step step(zeros);
    static_assert(kRows == 4, "one for each row");
    return Shape{{}, {step, step, step, step}, 0, 0};
  }

  int row_of(const Leaf& leaf) const {
    const auto found = std::find(rows_.begin(), rows_.end(), leaf.coefficients);
    return found == rows_.end() ? -1 : int(found - rows_.begin());
  }

  const Plan& plan_;
  cudaStream_t stream_;
  Shape launch_;
  std::vector<int> rows_;
};

template <Operation operation, template <class> class Rule, class S>
void run_leaves(const Plan& plan, cudaStream_t stream) {
  Queue<operation, Descent<S, Rule>, S> queue(plan, stream);
  for (const Leaf& leaf : plan.leaves) {
    const bool wide = leaf.dtype == Dtype::kFloat64;
    if (leaf.size > 0 && wide == (sizeof(S) == sizeof(double))) queue.add(leaf);
  }
  queue.flush();
}

template <Operation operation, template <class> class Rule>
void run_types(const Plan& plan, cudaStream_t stream) {
  run_leaves<operation, Rule, float>(plan, stream);
  run_leaves<operation, Rule, double>(plan, stream);
}

using Run = void (*)(const Plan&, cudaStream_t);

#define TORCHOPT_OPERATIONS(Rule, name)                                           \
  {run_types<Operation::kForward, Rule>, run_types<Operation::kBackward, Rule>,   \
   run_types<Operation::kForwardTangent, Rule>, run_types<Operation::kBackwardTangent, Rule>},
constexpr Run kRuns[kRules][kOperations] = {TORCHOPT_RULES(TORCHOPT_OPERATIONS)};
#undef TORCHOPT_OPERATIONS

// Makes a device current for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int index) {
    check(cudaGetDevice(&previous_));
    if (index != previous_) check(cudaSetDevice(index));
    changed_ = index != previous_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(previous_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

}  // namespace

void run_cuda(const Plan& plan, int device_index, void* stream) {
  const OnDevice guard(device_index);
  kRuns[plan.rule][static_cast<int>(plan.operation)](plan, static_cast<cudaStream_t>(stream));
}

}  // namespace torchopt
