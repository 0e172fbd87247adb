#include "bind.h"
#include "quant.h"

namespace phiggml {

namespace {

// Calls that take less than this many numbers end before anybody could press Ctrl-C; they stay on this thread.
constexpr std::int64_t watched_numbers = 1 << 18;

void require_shape(const py::array & array, std::int64_t n_rows, std::int64_t n_columns, const char * what) {
    if (array.ndim() != 2 || array.shape(0) != n_rows || array.shape(1) != n_columns) {
        throw Error(ErrorKind::input, std::string(what) + ": its shape must be (" + std::to_string(n_rows) + ", " +
                                          std::to_string(n_columns) + ").");
    }
}

FloatRows float_rows(const py::array & array) {
    const float * data = contiguous_data<float>(array, "x");
    if (array.ndim() != 2) {
        throw Error(ErrorKind::input, "x: it must have two axes, rows and columns.");
    }
    return {data, array.shape(0), array.shape(1)};
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

template <typename Work>
auto call(std::int64_t numbers, bool at_once, Work && work) {
    Progress progress;
    if (at_once && numbers < watched_numbers) {
        return call_released([&] { return work(progress); });
    }
    return call_watched(progress, py::none(), [&] { return work(progress); });
}

void quantize(const py::array & x, int type, py::array & out, const std::optional<py::array> & imatrix, int threads,
              bool nonfinite_ok) {
    const FloatRows rows = float_rows(x);
    require_shape(out, rows.n_rows, row_bytes(type, rows.n_per_row), "out");
    std::uint8_t * bytes = writable_data<std::uint8_t>(out, "out");
    const QuantizeSettings settings{type, importances(imatrix, rows.n_per_row), threads, nonfinite_ok};
    call(rows.n_rows * rows.n_per_row, tables_built(type),
         [&](Progress & progress) { quantize_rows(rows, settings, bytes, progress); });
}

void dequantize(const py::array & data, int type, std::int64_t n_per_row, py::array & out, int threads) {
    const std::uint8_t * bytes = contiguous_data<std::uint8_t>(data, "data");
    const std::int64_t n_rows = data.ndim() > 0 ? data.shape(0) : 0;
    require_shape(data, n_rows, row_bytes(type, n_per_row), "data");
    require_shape(out, n_rows, n_per_row, "out");
    float * numbers = writable_data<float>(out, "out");
    call(n_rows * n_per_row, true,
         [&](Progress & progress) { dequantize_rows(type, bytes, n_rows, n_per_row, numbers, threads, progress); });
}

py::dict error_sums(const py::array & x, int type, const std::optional<py::array> & imatrix, int threads) {
    const FloatRows rows = float_rows(x);
    row_bytes(type, rows.n_per_row);
    const QuantizeSettings settings{type, importances(imatrix, rows.n_per_row), threads, false};
    const QuantizationErrorSums sums = call(rows.n_rows * rows.n_per_row, tables_built(type), [&](Progress & progress) {
        return measure_error(rows, settings, progress);
    });
    py::dict result;
    result["squared_error"] = sums.squared_error;
    result["squared_value"] = sums.squared_value;
    result["squared_result"] = sums.squared_result;
    result["product"] = sums.product;
    result["max_abs"] = sums.max_abs;
    return result;
}

}  // namespace

void register_quant(py::module_ & m) {
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
    sub.def("error_sums", &error_sums, py::arg("x"), py::arg("type_id"), py::arg("imatrix"), py::arg("threads"));
}

}  // namespace phiggml
