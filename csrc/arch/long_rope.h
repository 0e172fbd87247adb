// Long rope: a model with two vectors of factors turns positions by one of them while a sequence is short, and by the
// other once it is longer than the context that the model was first trained on.
#pragma once

#include <cstdint>

#include "../upstream/export.h"

struct llama_model;

namespace phiggml::arch {

enum class RopeSide { within, beyond };

// The length up to which a sequence is within; 0 where one side is all there is.
PHIGGML_UPSTREAM_API std::uint32_t long_rope_line(const llama_model & model);

// Which side the calls of llama_decode that this thread makes are on, for as long as it lives. The tokens of one call
// are turned alike, so it holds sequences of one side only.
class PHIGGML_UPSTREAM_API RopeSideScope {
public:
    explicit RopeSideScope(RopeSide side);
    ~RopeSideScope();
    RopeSideScope(const RopeSideScope &) = delete;
    RopeSideScope & operator=(const RopeSideScope &) = delete;

private:
    RopeSide before_;
};

RopeSide rope_side();

}  // namespace phiggml::arch
