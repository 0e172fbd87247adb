// Cosines of quantized rows with a vector, and the devices of ggml's registry.

#include <ggml-backend.h>
#include <ggml.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Numbers = py::array_t<float, py::array::c_style>;

// ggml reads what it is told to read, so what Python says is checked first.
const ggml_type_traits & checked_traits(int type) {
    if (type < 0 || type >= GGML_TYPE_COUNT ||
        ggml_get_type_traits(static_cast<ggml_type>(type))->to_float == nullptr) {
        throw std::invalid_argument("cosines: type " + std::to_string(type) + " is not among those that are decoded.");
    }
    return *ggml_get_type_traits(static_cast<ggml_type>(type));
}

float cosine(const std::vector<float> & row, const float * query) {
    double product = 0, row_length = 0, query_length = 0;
    for (std::size_t i = 0; i < row.size(); ++i) {
        product += static_cast<double>(row[i]) * query[i];
        row_length += static_cast<double>(row[i]) * row[i];
        query_length += static_cast<double>(query[i]) * query[i];
    }
    const double lengths = std::sqrt(row_length * query_length);
    return lengths > 0 ? static_cast<float>(product / lengths) : 0.0F;
}

Numbers cosines(const Bytes & rows, int type, const Numbers & query) {
    const ggml_type_traits & traits = checked_traits(type);
    if (rows.ndim() != 2 || query.ndim() != 1 || query.size() % traits.blck_size != 0 ||
        static_cast<std::size_t>(rows.shape(1)) != ggml_row_size(static_cast<ggml_type>(type), query.size())) {
        throw std::invalid_argument("cosines: vectors must have two axes, and the query as many numbers as a row.");
    }
    Numbers result(rows.shape(0));
    const std::uint8_t * data = rows.data();
    float * out = result.mutable_data();
    {
        const py::gil_scoped_release released;
        std::vector<float> row(static_cast<std::size_t>(query.size()));
        for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
            traits.to_float(data + i * rows.shape(1), row.data(), query.size());
            out[i] = cosine(row, query.data());
        }
    }
    return result;
}

std::vector<std::string> device_names() {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        names.emplace_back(ggml_backend_dev_name(ggml_backend_dev_get(i)));
    }
    return names;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.def("cosines", &cosines, py::arg("rows").noconvert(), py::arg("type"), py::arg("query").noconvert());
    m.def("device_names", &device_names);
}
