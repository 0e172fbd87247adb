#include "long_rope.h"

#include "llama-model.h"

namespace phiggml::arch {

namespace {

thread_local RopeSide side_of_thread = RopeSide::within;

}  // namespace

std::uint32_t long_rope_line(const llama_model & model) {
    const bool ours = model.arch == LLM_ARCH_PHI3 || model.arch == LLM_ARCH_PHIMOE;
    if (!ours || model.layers.empty() || model.layers[0].rope_long == nullptr) {
        return 0;
    }
    return model.hparams.n_ctx_orig_yarn;
}

RopeSideScope::RopeSideScope(RopeSide side) : before_(side_of_thread) {
    side_of_thread = side;
}

RopeSideScope::~RopeSideScope() {
    side_of_thread = before_;
}

RopeSide rope_side() {
    return side_of_thread;
}

}  // namespace phiggml::arch
