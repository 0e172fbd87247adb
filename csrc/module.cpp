#include "bind.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "The compiled half of phiggml; use the phiggml package, not this.";
    phiggml::register_error(m);
    phiggml::register_runtime(m);
    phiggml::register_quant(m);
    phiggml::register_gguf(m);
    phiggml::register_recipe(m);
    phiggml::register_pipeline(m);
    phiggml::register_model(m);
    phiggml::register_grammar(m);
    phiggml::register_sampling(m);
    phiggml::register_session(m);
    phiggml::register_session_state(m);
    phiggml::register_adapter(m);
    phiggml::register_embedder(m);
    phiggml::register_placement(m);
    phiggml::register_prompt_lookup(m);
    phiggml::register_text_stream(m);
}
