#include "bind.h"
#include "embedder.h"
#include "session.h"

namespace phiggml {

namespace {

Pooling pooling_named(const std::string & name) {
    if (name == "none") {
        return Pooling::none;
    }
    if (name == "mean") {
        return Pooling::mean;
    }
    if (name == "cls") {
        return Pooling::first;
    }
    if (name == "last") {
        return Pooling::last;
    }
    throw Error(ErrorKind::input, "embed: pooling \"" + name + "\" is unknown. Known: none, mean, cls, last.");
}

py::array_t<float> embed(Session & session, const std::vector<py::array> & texts, const std::string & pooling_name,
                         bool normalize) {
    const Session::Use use(session);
    const Pooling pooling = pooling_named(pooling_name);
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
    sub.def("embed", &embed, py::arg("session"), py::arg("texts"), py::arg("pooling"), py::arg("normalize"));
}

}  // namespace phiggml
