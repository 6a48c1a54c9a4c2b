#include "tensors.hpp"

#include <algorithm>
#include <string>

namespace py = pybind11;

namespace torchopt {
namespace {

// The interface of DLPack 1.x.
struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};
struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLPackExchangeAPI {
  uint32_t major, minor;
  DLPackExchangeAPI* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*dltensor_from_py_object_no_sync)(void*, DLTensor*);
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** stream);
};
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4;

const DLPackExchangeAPI* exchange = nullptr;
PyObject* accepted = nullptr;  // a tuple of types

void check_type(PyObject* tensor) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(accepted); ++k) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == PyTuple_GET_ITEM(accepted, k)) return;
  }
  throw py::type_error("expected a torch.Tensor, got " +
                       std::string(py::str(py::type::handle_of(tensor))));
}

[[noreturn]] void refuse(PyObject* tensor, const char* what) {
  throw py::type_error(std::string("expected a float tensor on the CPU or a CUDA device, got ") +
                       what + " " + std::string(py::str(py::type::handle_of(tensor))));
}

DLTensor exchanged(PyObject* tensor) {
  DLTensor found;
  if (exchange->dltensor_from_py_object_no_sync(tensor, &found) != 0) {
    const std::string message = py::error_already_set().what();
    throw py::type_error("a tensor has no memory of its own, as sparse, meta and traced ones (" +
                         message.substr(0, message.find('\n')) + ")");
  }
  return found;
}

void view_exchanged(PyObject* tensor, TensorView& out) {
  const DLTensor found = exchanged(tensor);
  const DLDataType type = found.dtype;
  if (type.lanes != 1) refuse(tensor, "vectors in");
  if (type.code == kBfloat && type.bits == 16) {
    out.dtype = Dtype::kBFloat16;
  } else if (type.code == kFloat && (type.bits == 16 || type.bits == 32 || type.bits == 64)) {
    out.dtype = type.bits == 16   ? Dtype::kFloat16
                : type.bits == 32 ? Dtype::kFloat32
                                  : Dtype::kFloat64;
  } else {
    refuse(tensor, "another dtype in");
  }
  const int32_t device = found.device.device_type;
  if (device != int(Device::kCpu) && device != int(Device::kCuda)) refuse(tensor, "another device in");
  out.device = static_cast<Device>(device);
  out.device_index = found.device.device_id;
  out.data = static_cast<char*>(found.data) + found.byte_offset;
  out.ndim = found.ndim;
  out.shape = found.shape;
  out.strides = found.strides;
}

void view_asked(PyObject* pointer, TensorView& out) {
  const py::handle tensor(pointer);
  const std::string dtype = py::str(tensor.attr("dtype"));
  if (dtype == "torch.float32") {
    out.dtype = Dtype::kFloat32;
  } else if (dtype == "torch.float64") {
    out.dtype = Dtype::kFloat64;
  } else if (dtype == "torch.float16") {
    out.dtype = Dtype::kFloat16;
  } else if (dtype == "torch.bfloat16") {
    out.dtype = Dtype::kBFloat16;
  } else {
    refuse(pointer, dtype.c_str());
  }
  const py::object device = tensor.attr("device");
  const std::string kind = py::str(device.attr("type"));
  if (kind != "cpu" && kind != "cuda") refuse(pointer, kind.c_str());
  out.device = kind == "cpu" ? Device::kCpu : Device::kCuda;
  const py::object index = device.attr("index");
  out.device_index = index.is_none() ? 0 : index.cast<int>();
  const py::tuple shape = tensor.attr("shape"), strides = tensor.attr("stride")();
  out.ndim = static_cast<int>(shape.size());
  if (2 * out.ndim > int(std::size(out.storage))) refuse(pointer, "more than 8 dimensions in");
  for (int k = 0; k < out.ndim; ++k) {
    out.storage[k] = shape[k].cast<int64_t>();
    out.storage[out.ndim + k] = strides[k].cast<int64_t>();
  }
  out.shape = out.storage;
  out.strides = out.storage + out.ndim;
  out.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
}

}  // namespace

void lend_exchange(const py::object& capsule, const py::tuple& types) {
  Py_INCREF(types.ptr());  // for the life of the process
  accepted = types.ptr();
  if (capsule.is_none()) {
    exchange = nullptr;
    return;
  }
  const auto* found = static_cast<const DLPackExchangeAPI*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (found == nullptr) throw py::error_already_set();
  while (found != nullptr && found->major != 1) found = found->previous;
  exchange = found != nullptr && found->dltensor_from_py_object_no_sync != nullptr ? found : nullptr;
}

bool is_negated(PyObject* tensor) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  PyObject* const answer = PyObject_CallMethodNoArgs(tensor, name);
  if (answer == nullptr) throw py::error_already_set();
  Py_DECREF(answer);
  return answer == Py_True;
}

void view(PyObject* tensor, TensorView& out) {
  check_type(tensor);
  exchange != nullptr ? view_exchanged(tensor, out) : view_asked(tensor, out);
  out.size = 1;
  for (int k = 0; k < out.ndim; ++k) out.size *= out.shape[k];
}

int64_t* count_address(PyObject* tensor) {
  check_type(tensor);
  const char* const refusal = "a step count must be a 0-dim int64 tensor on the CPU";
  if (exchange != nullptr) {
    const DLTensor found = exchanged(tensor);
    if (found.dtype.code != kInt || found.dtype.bits != 64 || found.ndim != 0 ||
        found.device.device_type != int(Device::kCpu)) {
      throw py::type_error(refusal);
    }
    return reinterpret_cast<int64_t*>(static_cast<char*>(found.data) + found.byte_offset);
  }
  const py::handle count(tensor);
  if (std::string(py::str(count.attr("dtype"))) != "torch.int64" ||
      !count.attr("is_cpu").cast<bool>() || count.attr("ndim").cast<int>() != 0) {
    throw py::type_error(refusal);
  }
  return reinterpret_cast<int64_t*>(count.attr("data_ptr")().cast<uintptr_t>());
}

bool is_dense(const TensorView& tensor) {
  int64_t expected = 1;
  bool contiguous = true;
  for (int k = tensor.ndim; k-- > 0;) {
    if (tensor.shape[k] == 1) continue;
    contiguous = contiguous && tensor.strides[k] == expected;
    expected *= tensor.shape[k];
  }
  if (contiguous || tensor.size <= 1) return true;
  // each dimension must go on where the faster ones end
  bool used[64] = {};
  if (tensor.ndim > 64) return false;
  int64_t next = 1;
  for (int found = 0; found < tensor.ndim; ++found) {
    int fastest = -1;
    for (int k = 0; k < tensor.ndim; ++k) {
      if (!used[k] && (tensor.shape[k] == 1 || tensor.strides[k] == next)) {
        fastest = k;
        break;
      }
    }
    if (fastest < 0) return false;
    used[fastest] = true;
    next *= tensor.shape[fastest];
  }
  return true;
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

bool same_layout(const TensorView& a, const TensorView& b) {
  for (int k = 0; k < a.ndim; ++k) {
    if (a.shape[k] != 1 && a.strides[k] != b.strides[k]) return false;
  }
  return true;
}

void* current_stream(int device_index) {
  void* stream = nullptr;
  if (exchange != nullptr) {
    if (exchange->current_work_stream(int(Device::kCuda), device_index, &stream) != 0) {
      throw py::error_already_set();
    }
    return stream;
  }
  const py::object current = py::module_::import("torch").attr("cuda").attr("current_stream");
  return reinterpret_cast<void*>(current(device_index).attr("cuda_stream").cast<uintptr_t>());
}

}  // namespace torchopt
