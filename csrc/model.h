// A model's weights and vocabulary, loaded by llama.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "gguf.h"
#include "progress.h"
#include "token_pieces.h"
#include "tokenizer.h"
#include "upstream/llama_model.h"

struct llama_model;

namespace phiggml {

struct ModelSettings {
    std::string path;                              // as the system has it, for messages
    std::vector<std::shared_ptr<GgufFile>> files;  // what is loaded: the model, or all its parts in order
    int n_gpu_layers = 0;                          // -1: all
    std::vector<std::string> devices;              // those to offload to; empty: none is named
    std::vector<float> tensor_split;               // shares of the devices; empty: by their free memory
    std::string split_mode = "layer";              // "none", "layer" or "row"
    std::vector<std::pair<std::string, std::string>> tensor_overrides;  // (expression over tensor names, device)
    bool use_mmap = true;
    bool use_mlock = false;
    bool no_alloc = false;  // only to see what would lie where: no weights are read, no memory is taken for them
};

class Model {
public:
    // Backends must have been loaded. Progress counts to 1000.
    Model(const ModelSettings & settings, Progress & progress);

    std::vector<std::int32_t> tokenize(const std::string & text, bool add_special, bool parse_special) const;
    std::string detokenize(const std::vector<std::int32_t> & tokens, bool special) const;

    // The bytes of one token, which need not be whole characters.
    std::string piece(std::int32_t token, bool special) const;
    const TokenPieces & pieces() const;  // all of them, as they stand in answers; made at the first call
    bool is_end_of_generation(std::int32_t token) const;
    bool is_control(std::int32_t token) const;

    int n_vocab() const;
    int n_ctx_train() const;
    int n_layer() const;
    int n_embd() const;
    std::uint64_t n_params() const;
    std::uint64_t n_bytes() const;
    bool has_vocabulary() const;
    bool has_decoder() const;
    bool looks_ahead() const;  // attention is not causal
    std::string description() const;
    bool no_alloc() const { return no_alloc_; }
    std::vector<upstream::TensorPlace> placement() const;

    llama_model * handle() const { return model_.get(); }

    // Over upstream's list of the adapters that are loaded for this model: held alone by what changes the list, and
    // together by what makes a context or plans its graph, which read it.
    std::shared_mutex & adapters_mutex() const { return adapters_mutex_; }

private:
    std::vector<std::int32_t> encode(const std::string & text, bool add_special, bool parse_special) const;
    std::vector<std::int32_t> encode_upstream(const std::string & text, bool add_special, bool parse_special) const;

    struct Free {
        void operator()(llama_model * model) const;
    };
    bool no_alloc_;
    std::unique_ptr<llama_model, Free> model_;
    std::unique_ptr<Tokenizer> tokenizer_;         // of the model's vocabulary; none where upstream tokenizes
    std::unordered_set<std::int32_t> end_tokens_;  // beyond those that upstream knows
    mutable std::once_flag pieces_made_;
    mutable std::unique_ptr<const TokenPieces> pieces_;
    mutable std::shared_mutex adapters_mutex_;
};

}  // namespace phiggml
