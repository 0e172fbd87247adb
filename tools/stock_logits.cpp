// Logits of upstream's own llama library, for docs/fidelity.md: F32 cache, no flash attention, one thread.
//
//   stock_logits MODEL N_CTX TOKENS LOGITS [TOKENS LOGITS ...]
//
// TOKENS is a file of int32 token ids of one text, which is evaluated in one batch in an empty context; LOGITS is
// written: float32[tokens, n_vocab], those after each token. benchmarks/bench_fidelity.py compiles and runs it.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"

namespace {

struct FreeModel {
    void operator()(llama_model * model) const { llama_model_free(model); }
};

struct FreeContext {
    void operator()(llama_context * context) const { llama_free(context); }
};

using Model = std::unique_ptr<llama_model, FreeModel>;
using Context = std::unique_ptr<llama_context, FreeContext>;

std::vector<llama_token> read_tokens(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    if (!file || bytes.empty() || bytes.size() % sizeof(llama_token) != 0) {
        throw std::runtime_error(path + ": no file of int32 token ids");
    }
    const auto * first = reinterpret_cast<const llama_token *>(bytes.data());
    return {first, first + bytes.size() / sizeof(llama_token)};
}

Context new_context(llama_model * model, uint32_t n_ctx) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_ctx;
    params.n_batch = n_ctx;  // a text is read by one call
    params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    Context context(llama_init_from_model(model, params));
    if (!context) {
        throw std::runtime_error("llama_init_from_model failed");
    }
    return context;
}

void evaluate(llama_context * context, int n_vocab, std::vector<llama_token> tokens, const std::string & out) {
    llama_memory_clear(llama_get_memory(context), true);
    llama_batch batch = llama_batch_init(static_cast<int32_t>(tokens.size()), 0, 1);
    const std::unique_ptr<llama_batch, void (*)(llama_batch *)> owner(&batch,
                                                                      [](llama_batch * b) { llama_batch_free(*b); });
    for (size_t i = 0; i < tokens.size(); ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = static_cast<llama_pos>(i);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    batch.n_tokens = static_cast<int32_t>(tokens.size());
    if (const int code = llama_decode(context, batch); code != 0) {
        throw std::runtime_error("llama_decode returned " + std::to_string(code));
    }
    std::ofstream file(out, std::ios::binary);
    for (size_t i = 0; i < tokens.size(); ++i) {
        const float * row = llama_get_logits_ith(context, static_cast<int32_t>(i));
        file.write(reinterpret_cast<const char *>(row), static_cast<std::streamsize>(sizeof(float)) * n_vocab);
    }
    if (!file.flush()) {
        throw std::runtime_error(out + ": could not be written");
    }
}

void run(const std::vector<std::string> & arguments) {
    if (arguments.size() < 4 || arguments.size() % 2 != 0) {
        throw std::runtime_error("usage: stock_logits MODEL N_CTX TOKENS LOGITS [TOKENS LOGITS ...]");
    }
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    const Model model(llama_model_load_from_file(arguments[0].c_str(), params));
    if (!model) {
        throw std::runtime_error("the model does not load");
    }
    const Context context = new_context(model.get(), static_cast<uint32_t>(std::stoul(arguments[1])));
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    for (size_t i = 2; i < arguments.size(); i += 2) {
        evaluate(context.get(), n_vocab, read_tokens(arguments[i]), arguments[i + 1]);
    }
}

}  // namespace

int main(int argc, char ** argv) {
    try {
        llama_backend_init();
        run({argv + 1, argv + argc});
        llama_backend_free();
    } catch (const std::exception & error) {
        std::fprintf(stderr, "stock_logits: %s\n", error.what());
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
