#include "bind.h"
#include "embedder.h"
#include "session.h"

namespace phiggml {

namespace {

py::array_t<float> embed(Session & session, const std::vector<py::array> & texts, Pooling pooling, bool normalize) {
    const Session::Use use(session);
    EmbedRequest request;
    std::size_t n_rows = 0;
    for (const py::array & text : texts) {
        request.texts.push_back(token_vector(text));
        n_rows += pooling == Pooling::none ? request.texts.back().size() : 1;
    }
    request.pooling = pooling;
    request.normalize = normalize;
    Progress progress;
    std::vector<float> rows = call_watched(progress, py::none(), [&] { return session.embed(request, progress); });
    const auto n_columns = static_cast<py::ssize_t>(rows.size() / n_rows);
    return owned_array(std::move(rows), {static_cast<py::ssize_t>(n_rows), n_columns});
}

}  // namespace

void register_embedder(py::module_ & m) {
    py::module_ sub = m.def_submodule("embedder", "Vectors of texts.");
    py::enum_<Pooling>(sub, "Pooling")
        .value("none", Pooling::none)
        .value("mean", Pooling::mean)
        .value("first", Pooling::first)
        .value("last", Pooling::last);
    sub.def("embed", &embed, py::arg("session"), py::arg("texts"), py::arg("pooling"), py::arg("normalize"));
}

}  // namespace phiggml
