// The Python module, built once for each driver: TORCHOPT_MODULE, TORCHOPT_DEVICE.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "plan.hpp"
#include "tensors.hpp"

#if defined(TORCHOPT_CUDA)
#include "cuda/driver.hpp"
#else
#include "cpu/driver.hpp"
#include "cpu/kernels.hpp"
#endif

namespace py = pybind11;

namespace torchopt {
namespace {

const char* const kNames[] = {
#define TORCHOPT_NAME(type, name) name,
    TORCHOPT_RULES(TORCHOPT_NAME)
#undef TORCHOPT_NAME
};

constexpr int kStates[] = {
#define TORCHOPT_STATES(type, name) type<float>::kStates,
    TORCHOPT_RULES(TORCHOPT_STATES)
#undef TORCHOPT_STATES
};

#if defined(TORCHOPT_CUDA) && !defined(TORCHOPT_EMULATED)
constexpr Device kDevice = Device::kCuda;
#else
constexpr Device kDevice = Device::kCpu;
#endif

std::string text(const TensorView& tensor) {
  static const char* const dtypes[] = {"float32", "float64", "float16", "bfloat16"};
  std::string result = std::string(dtypes[int(tensor.dtype)]) + " of shape (";
  for (int k = 0; k < tensor.ndim; ++k) {
    result += (k ? ", " : "") + std::to_string(tensor.shape[k]);
  }
  return result + (tensor.device == Device::kCpu ? ") on the CPU"
                                                 : ") on CUDA device " +
                                                       std::to_string(tensor.device_index));
}

bool is_stream(PyObject* object) { return PyList_Check(object) || PyTuple_Check(object); }

// A list of tensors and None, one for each leaf; or None, if the stream is absent.
struct Stream {
  PyObject* list;

  Stream(PyObject* object, Py_ssize_t leaves) : list(object) {
    if (object == Py_None) return;
    if (!is_stream(object)) throw std::runtime_error("a stream must be a list, a tuple or None");
    if (PySequence_Fast_GET_SIZE(object) != leaves) {
      throw std::runtime_error("a stream has " + std::to_string(PySequence_Fast_GET_SIZE(object)) +
                               " leaves, expected " + std::to_string(leaves));
    }
  }

  PyObject* operator[](Py_ssize_t i) const {
    return list == Py_None ? Py_None : PySequence_Fast_GET_ITEM(list, i);
  }
};

Py_ssize_t count_leaves(const py::list& streams) {
  for (const py::handle stream : streams) {
    if (is_stream(stream.ptr())) return PySequence_Fast_GET_SIZE(stream.ptr());
  }
  return 0;
}

// Gathers the addresses of a leaf. Returns whether all streams have one dense layout.
// Throws if they differ in shape, dtype or device, or some are None where all must be there.
bool gather(Py_ssize_t i, const std::vector<Stream>& inputs, const std::vector<Stream>& outputs,
            bool complete, Leaf& leaf, int& device_index) {
  TensorView first, other;
  bool found = false, same = true;
  const auto take = [&](PyObject* tensor) -> void* {
    if (tensor == Py_None) return nullptr;
    TensorView& current = found ? other : first;
    view(tensor, current);
    if (current.device != kDevice) {
      throw py::value_error("leaf " + std::to_string(i) + " is " + text(current) +
                            ", which these kernels are not for");
    }
    if (!found) {
      found = true;
      if (device_index >= 0 && device_index != current.device_index) {
        throw py::value_error("the leaves are on different devices");
      }
      device_index = current.device_index;
      leaf.size = current.size;
      leaf.dtype = current.dtype;
      same = is_dense(current);
      return current.data;
    }
    if (!same_shape(first, current) || first.dtype != current.dtype ||
        first.device_index != current.device_index) {
      throw py::value_error("leaf " + std::to_string(i) + " has tensors that differ: " +
                            text(first) + " and " + text(current));
    }
    same = same && same_layout(first, current);
    return current.data;
  };
  leaf.size = 0;
  leaf.dtype = Dtype::kFloat32;
  for (size_t k = 0; k < inputs.size(); ++k) {
    PyObject* const tensor = inputs[k][i];
    if (complete && tensor == Py_None && inputs[k].list != Py_None) {
      throw py::value_error("leaf " + std::to_string(i) + " has a tensor that is None");
    }
    leaf.in[k] = take(tensor);
    same = same && (tensor == Py_None || !is_negated(tensor));
  }
  for (size_t k = 0; k < outputs.size(); ++k) leaf.out[k] = take(outputs[k][i]);
  return same;
}

// Whether a tensor can be read and written element by element, in the order of `like`.
bool lies_like(PyObject* tensor, const TensorView& like) {
  TensorView current;
  view(tensor, current);
  return same_layout(like, current) && !is_negated(tensor);
}

// Lists the tensors of a leaf that do not lie as most do, as (stream, leaf, tensor to lie like);
// the latter is None where none is dense. The layout is that of a result, which is not to be copied
// back, or of an input.
void list_strided(Py_ssize_t i, const std::vector<Stream>& inputs,
                  const std::vector<Stream>& outputs, py::list& strided) {
  std::vector<PyObject*> tensors;
  for (const Stream& stream : inputs) tensors.push_back(stream[i]);
  for (const Stream& stream : outputs) tensors.push_back(stream[i]);
  const auto is_candidate = [&](PyObject* tensor, TensorView& out) {
    if (tensor == Py_None) return false;
    view(tensor, out);
    return is_dense(out) && !is_negated(tensor);
  };
  TensorView layout;
  PyObject* like = Py_None;
  for (size_t k = 0; k < tensors.size() && like == Py_None; ++k) {
    PyObject* const tensor = tensors[(k + inputs.size()) % tensors.size()];
    if (is_candidate(tensor, layout)) like = tensor;
  }
  for (size_t k = 0; k < tensors.size(); ++k) {
    if (tensors[k] == Py_None || (like != Py_None && lies_like(tensors[k], layout))) continue;
    strided.append(py::make_tuple(k, i, py::reinterpret_borrow<py::object>(like)));
  }
}

int row_of(const py::object& rows, Py_ssize_t i, size_t count) {
  if (rows.is_none()) return 0;
  if (!PyList_Check(rows.ptr()) || i >= PyList_GET_SIZE(rows.ptr())) {
    throw std::runtime_error("`rows` must have an entry for each leaf");
  }
  const long row = PyLong_AsLong(PyList_GET_ITEM(rows.ptr(), i));
  if (row == -1 && PyErr_Occurred()) throw py::error_already_set();
  if (row < 0 || row >= static_cast<long>(count)) {
    throw std::runtime_error("`rows` has " + std::to_string(row) + ", but there are " +
                          std::to_string(count) + " rows of coefficients");
  }
  return static_cast<int>(row);
}

// The step counts: one number if they are equal.
py::object counts(const py::sequence& tensors) {
  const Stream stream(tensors.ptr(), py::len(tensors));
  const Py_ssize_t n = py::len(tensors);
  bool equal = true;
  py::list values(n);
  int64_t first = 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    const int64_t value = *count_address(stream[i]);
    if (i == 0) first = value;
    equal = equal && value == first;
    values[i] = py::int_(value);
  }
  if (n > 0 && equal) return py::int_(first);
  return values;
}

void increment(const py::sequence& tensors) {
  for (const py::handle tensor : tensors) ++*count_address(tensor.ptr());
}

py::object run(int operation, int rule, const py::list& coefficients, const py::object& rows,
               const py::list& inputs, const py::list& outputs, int threads) {
  if (rule < 0 || rule >= kRules || operation < 0 || operation >= kOperations) {
    throw std::runtime_error("no such rule or operation");
  }
  Plan plan;
  plan.rule = rule;
  plan.operation = static_cast<Operation>(operation);
  plan.inputs = inputs_of(plan.operation, kStates[rule]);
  plan.outputs = outputs_of(plan.operation, kStates[rule]);
  if (static_cast<int>(inputs.size()) != plan.inputs ||
      static_cast<int>(outputs.size()) != plan.outputs) {
    throw std::runtime_error("expected " + std::to_string(plan.inputs) + " inputs and " +
                          std::to_string(plan.outputs) + " outputs, got " +
                          std::to_string(inputs.size()) + " and " + std::to_string(outputs.size()));
  }
  for (const py::handle row : coefficients) {
    const auto values = py::reinterpret_borrow<py::tuple>(row);
    if (!PyTuple_Check(row.ptr()) || values.size() > kCoefficients) {
      throw std::runtime_error("a row of coefficients must be a tuple of at most " +
                            std::to_string(kCoefficients) + " numbers");
    }
    Coefficients& added = plan.coefficients.emplace_back();
    std::fill(std::begin(added.values), std::end(added.values), 0.0);
    for (size_t k = 0; k < values.size(); ++k) added.values[k] = values[k].cast<double>();
  }

  const Py_ssize_t leaves = count_leaves(inputs);
  std::vector<Stream> in, out;
  for (const py::handle stream : inputs) in.emplace_back(stream.ptr(), leaves);
  for (const py::handle stream : outputs) out.emplace_back(stream.ptr(), leaves);
  plan.leaves.resize(leaves);
  py::list strided;
  int device_index = -1;
  for (Py_ssize_t i = 0; i < leaves; ++i) {
    Leaf& leaf = plan.leaves[i];
    leaf.coefficients = row_of(rows, i, plan.coefficients.size());
    const bool complete = plan.operation == Operation::kForward;
    if (!gather(i, in, out, complete, leaf, device_index)) list_strided(i, in, out, strided);
  }
  if (!strided.empty()) return strided;
  if (plan.leaves.empty()) return py::none();
  if (plan.coefficients.empty()) throw std::runtime_error("there are no coefficients");
#if defined(TORCHOPT_CUDA)
  (void)threads;
  void* stream = kDevice == Device::kCuda ? current_stream(device_index) : nullptr;
  {
    const py::gil_scoped_release release;
    run_cuda(plan, device_index, stream);
  }
#else
  {
    const py::gil_scoped_release release;
    run_cpu(plan, threads);
  }
#endif
  return py::none();
}

}  // namespace
}  // namespace torchopt

PYBIND11_MODULE(TORCHOPT_MODULE, module) {
  using namespace torchopt;
  module.def("lend_exchange", &lend_exchange, py::arg("capsule"), py::arg("types"));
  module.def("counts", &counts, py::arg("tensors"),
             "Return the value of 0-dim int64 tensors on the CPU: one number if all are equal.");
  module.def("increment", &increment, py::arg("tensors"), "Add one to each of such tensors.");
  module.def("run", &run, py::arg("operation"), py::arg("rule"), py::arg("coefficients"),
             py::arg("rows"), py::arg("inputs"), py::arg("outputs"), py::arg("threads"),
             "Run an operation of a rule on all leaves. Where the tensors of a leaf lie differently, "
             "nothing is run, and those that have to be copied are returned: the stream, the leaf, "
             "and what the copy is to lie like, None for a contiguous one.");
  py::dict rules;
  for (int i = 0; i < kRules; ++i) rules[kNames[i]] = i;
  module.attr("RULES") = rules;
#if !defined(TORCHOPT_CUDA)
  module.attr("INSTRUCTION_SET") = instruction_set();
  module.attr("HAS_THREADS") = has_threads();
#endif
}
