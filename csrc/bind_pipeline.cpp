#include "bind.h"
#include "gguf.h"
#include "mapped_file.h"
#include "pipeline.h"

namespace phiggml {

namespace {

using namespace std::chrono_literals;

// Where rows come from, and what it was like when it was opened.
struct RowSource {
    std::shared_ptr<const ByteSource> bytes;
    ByteStamp stamp;
};

RowSource source_of_file(int descriptor, const std::string & name) {
    std::shared_ptr<const ByteSource> bytes = MappedFile::from_descriptor(descriptor, name);
    const ByteStamp stamp = bytes->stamp();
    return {std::move(bytes), stamp};
}

RowSource source_of_array(const py::array & array, const std::string & name) {
    const auto * data = contiguous_data<std::uint8_t>(array, "rows");
    auto kept = std::make_shared<py::array>(array);
    const std::shared_ptr<const void> owner(data, [kept](const void *) mutable {
        const py::gil_scoped_acquire held;
        kept.reset();
    });
    auto bytes = std::make_shared<const MemoryBytes>(data, static_cast<std::uint64_t>(array.nbytes()), owner, name);
    const ByteStamp stamp = bytes->stamp();
    return {std::move(bytes), stamp};
}

PipelineTensor make_tensor(std::string name, int type, std::int64_t n_per_row, std::vector<RowRun> runs,
                           const std::optional<py::array> & imatrix, std::int64_t rows_of_expert) {
    PipelineTensor tensor{std::move(name), type, n_per_row, std::move(runs), {}, rows_of_expert};
    if (imatrix) {
        const float * data = contiguous_data<float>(*imatrix, "imatrix");
        tensor.imatrix.assign(data, data + imatrix->size());
    }
    return tensor;
}

// Waits without the GIL, and looks for Ctrl-C meanwhile.
py::object next_chunk(Pipeline & pipeline) {
    while (!call_released([&] { return pipeline.wait(20ms); })) {
        if (PyErr_CheckSignals() != 0) {
            throw py::error_already_set();
        }
    }
    std::optional<PipelineChunk> chunk = call_released([&] { return pipeline.next(); });
    if (!chunk) {
        return py::none();
    }
    auto holder = std::make_unique<std::shared_ptr<std::uint8_t>>(std::move(chunk->rows));
    const std::uint8_t * const rows = holder->get();
    const py::capsule owner(holder.get(), [](void * pointer) {
        const std::unique_ptr<std::shared_ptr<std::uint8_t>> held(
            static_cast<std::shared_ptr<std::uint8_t> *>(pointer));
    });
    static_cast<void>(holder.release());
    const py::array_t<std::uint8_t> array({static_cast<py::ssize_t>(chunk->nbytes)}, rows, owner);
    return py::make_tuple(chunk->tensor, array);
}

py::list error_sums(const Pipeline & pipeline) {
    py::list all;
    for (const QuantizationErrorSums & sums : pipeline.errors()) {
        py::dict of_tensor;
        of_tensor["squared_error"] = sums.squared_error;
        of_tensor["squared_value"] = sums.squared_value;
        of_tensor["max_abs"] = sums.max_abs;
        all.append(of_tensor);
    }
    return all;
}

}  // namespace

void register_pipeline(py::module_ & m) {
    py::module_ sub = m.def_submodule("pipeline", "Rows of many tensors, converted while others are read and written.");
    py::class_<RowSource>(sub, "RowSource");
    sub.def("source_of_file", &source_of_file, py::arg("descriptor"), py::arg("name"));
    sub.def("source_of_array", &source_of_array, py::arg("array"), py::arg("name"));
    sub.def(
        "source_of_gguf", [](const GgufFile & file) { return RowSource{file.shared_source(), file.stamp()}; },
        py::arg("file"));
    py::class_<RowRun>(sub, "RowRun")
        .def(py::init([](const RowSource & source, std::uint64_t offset, std::int64_t n_rows, int type_id) {
                 return RowRun{source.bytes, source.stamp, offset, n_rows, type_id};
             }),
             py::kw_only(), py::arg("source"), py::arg("offset"), py::arg("n_rows"), py::arg("type_id"));
    py::class_<PipelineTensor>(sub, "Tensor")
        .def(py::init(&make_tensor), py::kw_only(), py::arg("name"), py::arg("type_id"), py::arg("n_per_row"),
             py::arg("runs"), py::arg("imatrix"), py::arg("rows_of_expert"));
    py::class_<Pipeline>(sub, "Pipeline")
        .def(py::init([](std::vector<PipelineTensor> tensors, int threads, std::uint64_t max_memory, bool measure) {
                 return call_released([&] {
                     return std::make_unique<Pipeline>(std::move(tensors),
                                                       PipelineSettings{threads, max_memory, measure});
                 });
             }),
             py::kw_only(), py::arg("tensors"), py::arg("threads"), py::arg("max_memory"), py::arg("measure_error"))
        .def("next", &next_chunk)
        .def("close", [](Pipeline & pipeline) { call_released([&] { pipeline.close(); }); })
        .def("error_sums", &error_sums)
        .def("seconds", [](const Pipeline & pipeline) {
            const PipelineSeconds seconds = pipeline.seconds();
            return py::make_tuple(seconds.reading, seconds.converting);
        });
}

}  // namespace phiggml
