// Tensors as they are in memory, read without libtorch.
//
// torch >= 2.10 lends its C functions for DLPack (https://dmlc.github.io/dlpack), an interface that
// is stable across versions; the declarations below are that interface. For older versions the same
// facts are asked of the Python object.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "plan.hpp"

namespace torchopt {

enum class Device : int { kCpu = 1, kCuda = 2 };  // as in DLPack

// What a kernel has to know of a tensor.
struct TensorView {
  void* data;
  int64_t size;
  Dtype dtype;
  Device device;
  int device_index;
  int ndim;
  const int64_t* shape;
  const int64_t* strides;  // in elements
  int64_t storage[16];     // of shape and strides, where nobody else holds them
};

// Lends torch's functions: `capsule` is `torch.Tensor.__dlpack_c_exchange_api__`, or None. Only
// tensors of exactly these types are read: a subclass may hold something else than it shows.
void lend_exchange(const pybind11::object& capsule, const pybind11::tuple& types);

// Reads a tensor, or throws TypeError or ValueError.
void view(PyObject* tensor, TensorView& out);

// Whether a tensor's memory holds the negatives of its values.
bool is_negated(PyObject* tensor);

// The address of a step count, a 0-dim int64 tensor on the CPU, or throws TypeError.
int64_t* count_address(PyObject* tensor);

// Whether no two elements share memory and none is left out.
bool is_dense(const TensorView& tensor);
bool same_shape(const TensorView& a, const TensorView& b);
bool same_layout(const TensorView& a, const TensorView& b);

// The current stream of a device.
void* current_stream(int device_index);

}  // namespace torchopt
