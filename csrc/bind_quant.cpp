#include "bind.h"
#include "dlpack.h"
#include "grid_tables.h"
#include "kernel_set.h"
#include "quant.h"
#include "quant_product.h"
#include "quant_type.h"

namespace phiggml {

namespace {

void require_shape(const py::array & array, std::int64_t n_rows, std::int64_t n_columns, const char * what) {
    if (array.ndim() != 2 || array.shape(0) != n_rows || array.shape(1) != n_columns) {
        throw Error(ErrorKind::input, std::string(what) + ": its shape must be (" + std::to_string(n_rows) + ", " +
                                          std::to_string(n_columns) + ").");
    }
}

// float16, float32, float64; uint16 holds the bits of bfloat16, which numpy has no dtype for.
ValueKind value_kind(const py::array & array, const char * what) {
    if (py::isinstance<py::array_t<float>>(array)) {
        return ValueKind::float32;
    }
    if (py::isinstance<py::array_t<double>>(array)) {
        return ValueKind::float64;
    }
    if (py::isinstance<py::array_t<std::uint16_t>>(array)) {
        return ValueKind::bfloat16;
    }
    if (array.dtype().kind() == 'f' && array.itemsize() == 2 && array.dtype().byteorder() == '=') {
        return ValueKind::float16;
    }
    throw Error(ErrorKind::input, std::string(what) + ": its dtype is " + py::str(array.dtype()).cast<std::string>() +
                                      ", not a float of this machine's byte order.");
}

ValueRows value_rows(const py::array & array) {
    if (array.ndim() == 0) {
        throw Error(ErrorKind::input, "x: it has no axes.");
    }
    return ValueRows(array.data(), value_kind(array, "x"),
                     std::vector<std::int64_t>(array.shape(), array.shape() + array.ndim()),
                     std::vector<std::int64_t>(array.strides(), array.strides() + array.ndim()));
}

std::int64_t row_bytes(int type, std::int64_t n_per_row) {
    if (!type_exists(type)) {
        throw Error(ErrorKind::input, "there is no quant type of id " + std::to_string(type) + ".");
    }
    return n_per_row / block_size(type) * static_cast<std::int64_t>(block_bytes(type));
}

const float * importances(const std::optional<py::array> & imatrix, std::int64_t n_per_row) {
    if (!imatrix) {
        return nullptr;
    }
    const float * data = contiguous_data<float>(*imatrix, "imatrix");
    if (imatrix->ndim() != 1 || imatrix->shape(0) != n_per_row) {
        throw Error(ErrorKind::input, "imatrix: it must be float32[" + std::to_string(n_per_row) +
                                          "], one importance for each column of x.");
    }
    return data;
}

void * writable_numbers(py::array & array) {
    if (!(array.flags() & py::array::c_style) || !array.writeable()) {
        throw Error(ErrorKind::input, "out: the array must be C-contiguous and writable.");
    }
    return array.mutable_data();
}

void quantize(const py::array & x, int type, py::array & out, const std::optional<py::array> & imatrix, int threads,
              bool nonfinite_ok) {
    const ValueRows rows = value_rows(x);
    require_shape(out, rows.n_rows(), row_bytes(type, rows.n_per_row()), "out");
    std::uint8_t * bytes = writable_data<std::uint8_t>(out, "out");
    const QuantizeSettings settings{type, importances(imatrix, rows.n_per_row()), threads, nonfinite_ok};
    Progress progress;
    call_polled(progress, [&] { quantize_rows(rows, settings, bytes, progress); });
}

void dequantize(const py::array & data, int type, std::int64_t n_per_row, py::array & out, int threads) {
    const std::uint8_t * bytes = contiguous_data<std::uint8_t>(data, "data");
    const std::int64_t n_rows = data.ndim() > 0 ? data.shape(0) : 0;
    require_shape(data, n_rows, row_bytes(type, n_per_row), "data");
    require_shape(out, n_rows, n_per_row, "out");
    const NumberRows numbers{writable_numbers(out), value_kind(out, "out"), n_rows, n_per_row};
    Progress progress;
    call_polled(progress, [&] { dequantize_rows(type, bytes, numbers, threads, progress); });
}

py::dict error_sums(const py::array & x, int type, const std::optional<py::array> & imatrix, int threads) {
    const ValueRows rows = value_rows(x);
    row_bytes(type, rows.n_per_row());
    const QuantizeSettings settings{type, importances(imatrix, rows.n_per_row()), threads, false};
    Progress progress;
    QuantizationErrorSums sums;
    call_polled(progress, [&] { sums = measure_error(rows, settings, progress); });
    py::dict result;
    result["squared_error"] = sums.squared_error;
    result["squared_value"] = sums.squared_value;
    result["squared_result"] = sums.squared_result;
    result["product"] = sums.product;
    result["max_abs"] = sums.max_abs;
    return result;
}

void multiply(const py::array & x, const py::array & data, int type, std::int64_t n, py::array & out, int threads) {
    const ValueRows vectors = value_rows(x);
    const std::uint8_t * bytes = contiguous_data<std::uint8_t>(data, "data");
    const std::int64_t n_rows = data.ndim() > 0 ? data.shape(0) : 0;
    require_shape(data, n_rows, row_bytes(type, n), "data");
    require_shape(out, vectors.n_rows(), n_rows, "out");
    if (vectors.n_per_row() != n) {
        throw Error(ErrorKind::input, "x: its last axis must have " + std::to_string(n) + " numbers.");
    }
    float * products = writable_data<float>(out, "out");
    Progress progress;
    call_polled(progress, [&] { multiply_rows({type, bytes, n_rows, n}, vectors, products, threads, progress); });
}

constexpr std::int64_t most_stride = INT64_MAX / 8;  // in numbers

using ManagedTensor = std::unique_ptr<dlpack::ManagedTensor, void (*)(dlpack::ManagedTensor *)>;

void let_go(dlpack::ManagedTensor * managed) {
    if (managed->deleter != nullptr) {
        managed->deleter(managed);
    }
}

py::dtype numpy_dtype(const dlpack::DataType & type) {
    if (type.code == dlpack::bfloat && type.bits == 16 && type.lanes == 1) {
        return py::dtype::of<std::uint16_t>();
    }
    if (type.code == dlpack::floating && type.lanes == 1 && (type.bits == 16 || type.bits == 32 || type.bits == 64)) {
        return py::dtype("f" + std::to_string(type.bits / 8));
    }
    throw Error(ErrorKind::input,
                "x: it is no tensor of float16, bfloat16, float32 or float64. Convert it first, with x.float() "
                "in torch.");
}

// What is wrong with a tensor that another library describes, or null.
const char * flaw(const dlpack::Tensor & tensor) {
    if (tensor.device.type != dlpack::cpu && tensor.device.type != dlpack::cuda_host) {
        return "it lies in the memory of a device";
    }
    if (tensor.ndim < 0 || (tensor.ndim > 0 && tensor.shape == nullptr)) {
        return "it has no shape";
    }
    bool empty = false;
    for (std::int32_t axis = 0; axis < tensor.ndim; ++axis) {
        const std::int64_t stride = tensor.strides != nullptr ? tensor.strides[axis] : 0;
        if (tensor.shape[axis] < 0 || stride > most_stride || stride < -most_stride) {
            return "its shape or strides are no sizes of memory";
        }
        empty = empty || tensor.shape[axis] == 0;
    }
    return tensor.data == nullptr && !empty ? "it has no data" : nullptr;
}

// The numbers where they are, of a "dltensor" capsule, and whether they are bfloat16.
py::tuple from_dlpack(const py::object & capsule) {
    auto * found = static_cast<dlpack::ManagedTensor *>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (found == nullptr) {
        throw py::error_already_set();
    }
    const dlpack::Tensor & tensor = found->tensor;
    if (const char * wrong = flaw(tensor)) {
        throw Error(ErrorKind::input, std::string("x: its DLPack capsule says that ") + wrong + ".");
    }
    const py::dtype dtype = numpy_dtype(tensor.dtype);
    std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim);
    std::vector<py::ssize_t> strides(shape.size());
    auto together = static_cast<std::uint64_t>(dtype.itemsize());  // numpy refuses shapes that make it overflow
    for (std::size_t axis = shape.size(); axis-- > 0;) {
        strides[axis] =
            tensor.strides != nullptr ? tensor.strides[axis] * dtype.itemsize() : static_cast<py::ssize_t>(together);
        together *= static_cast<std::uint64_t>(shape[axis]);
    }
    const auto * data = static_cast<const std::uint8_t *>(tensor.data) + tensor.byte_offset;
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    ManagedTensor managed(found, let_go);
    const py::capsule owner(managed.get(),
                            [](void * pointer) { let_go(static_cast<dlpack::ManagedTensor *>(pointer)); });
    static_cast<void>(managed.release());
    py::array array(dtype, shape, strides, data, owner);
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return py::make_tuple(array, tensor.dtype.code == dlpack::bfloat);
}

}  // namespace

void register_quant(py::module_ & m) {
    hold_forks_while_building();
    py::module_ sub = m.def_submodule("quant", "Rows of numbers to and from quantized blocks.");
    py::class_<QuantTypeInfo>(sub, "QuantTypeInfo")
        .def_readonly("id", &QuantTypeInfo::id)
        .def_readonly("name", &QuantTypeInfo::name)
        .def_readonly("block_size", &QuantTypeInfo::block_size)
        .def_readonly("block_bytes", &QuantTypeInfo::block_bytes)
        .def_readonly("requires_imatrix", &QuantTypeInfo::requires_imatrix)
        .def_readonly("can_quantize", &QuantTypeInfo::can_quantize)
        .def_readonly("can_dequantize", &QuantTypeInfo::can_dequantize);
    sub.def("all_types", &all_types);
    sub.def("quantize_rows", &quantize, py::arg("x"), py::arg("type_id"), py::arg("out"), py::arg("imatrix"),
            py::arg("threads"), py::arg("nonfinite_ok"));
    sub.def("dequantize_rows", &dequantize, py::arg("data"), py::arg("type_id"), py::arg("n"), py::arg("out"),
            py::arg("threads"));
    sub.def("from_dlpack", &from_dlpack, py::arg("capsule"));
    sub.def("kernel_sets", &kernel_sets);
    sub.def("kernel_set", &kernel_set);
    sub.def("use_kernel_set", &use_kernel_set, py::arg("name"));
    sub.def("multiply_rows", &multiply, py::arg("x"), py::arg("data"), py::arg("type_id"), py::arg("n"), py::arg("out"),
            py::arg("threads"));
    sub.def("error_sums", &error_sums, py::arg("x"), py::arg("type_id"), py::arg("imatrix"), py::arg("threads"));
}

}  // namespace phiggml
