// What llama_model.cpp adds to the llama library: where each tensor of a model lies, what a context takes beside it,
// how long its heads are, and what upstream's graph of it leaves out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "export.h"

struct llama_context;
struct llama_model;

namespace phiggml::upstream {

struct TensorPlace {
    std::string name;       // "blk.0.attn_qkv.weight"
    std::string device;     // "CPU", whatever kind of its memory it is
    std::uint64_t n_bytes;  // in the device's buffer, padding included
};

// Each tensor and where it lies, or would lie in a model that was loaded with no_alloc. A tensor of which several
// devices have a copy comes several times; the embedding's second one, which serves as output, is "output.weight".
PHIGGML_UPSTREAM_API std::vector<TensorPlace> tensor_places(const llama_model & model);

// A weight that its device cannot take in one piece, though an override put it there, or none. Where there is one,
// upstream asserts that there is not.
PHIGGML_UPSTREAM_API std::optional<TensorPlace> unfit_weight(const llama_model & model);

// The same of the cache of a layer, for so many cells of these types that lie where the layer does.
PHIGGML_UPSTREAM_API std::optional<TensorPlace> unfit_cache(const llama_model & model, int type_k, int type_v,
                                                            std::int64_t n_cells);

struct ContextBytes {
    std::string device;
    std::uint64_t kv;       // or recurrent states
    std::uint64_t compute;  // of the largest graph
};

// What a context takes on each device, or would take if its model had not been loaded with no_alloc.
PHIGGML_UPSTREAM_API std::vector<ContextBytes> context_bytes(const llama_context & context);

struct HeadSizes {
    std::int64_t key;
    std::int64_t value;
};

// Of the first layer.
PHIGGML_UPSTREAM_API HeadSizes head_sizes(const llama_model & model);

// How many tensors the adapters of one context may change together, which upstream's graphs of some architectures have
// no room of their own for.
PHIGGML_UPSTREAM_API std::size_t most_adapted_tensors(const llama_model & model);

// Whether each token attends to those before it alone.
PHIGGML_UPSTREAM_API bool is_causal(const llama_model & model);

// Whether the file says how a text's vector is made of its tokens'.
PHIGGML_UPSTREAM_API bool has_pooling_type(const llama_model & model);

// How many positions a learned table of them has; beyond it upstream ends the process. INT64_MAX where there is none.
PHIGGML_UPSTREAM_API std::int64_t most_positions(const llama_model & model);

// Whether upstream's graph adds control vectors.
PHIGGML_UPSTREAM_API bool adds_control_vectors(const llama_model & model);

}  // namespace phiggml::upstream
