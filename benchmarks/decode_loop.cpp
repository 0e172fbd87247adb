// The plainest program over llama.h that is fast: what bench_session.py and bench_threads.py compare a Session with.
//
// decode_loop LIB_FOLDER MODEL.gguf THREADS POLL TEST...    TEST: pp64 reads 64 tokens, tg32 writes 32, 2xtg32 writes
// 32
//                                                           in each of two contexts, by turns
// Each test has contexts of its own, each with a pool of threads, and is warmed up as llama-bench warms it up. A line
// for each: its name, seconds, and the CPU seconds of the process in the second that follows, when nothing is asked.

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

template <typename Function>
Function cpu_function(const char * name) {
    const ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name));
}

struct FreePool {
    void operator()(ggml_threadpool * pool) const {
        cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")(pool);
    }
};
struct FreeContext {
    void operator()(llama_context * context) const { llama_free(context); }
};
struct FreeModel {
    void operator()(llama_model * model) const { llama_model_free(model); }
};

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double cpu_seconds() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

class Context {
public:
    Context(llama_model * model, std::size_t n_ctx, int n_threads, unsigned poll) {
        llama_context_params parameters = llama_context_default_params();
        parameters.n_ctx = static_cast<std::uint32_t>(n_ctx);
        parameters.n_threads = parameters.n_threads_batch = n_threads;
        context_.reset(llama_init_from_model(model, parameters));
        ggml_threadpool_params threads = ggml_threadpool_params_default(n_threads);
        threads.poll = poll;
        pool_.reset(cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new")(&threads));
        if (!context_ || !pool_) {
            throw std::runtime_error("no context");
        }
        llama_attach_threadpool(context_.get(), pool_.get(), pool_.get());
    }

    void decode(llama_token * tokens, std::size_t n) {
        if (llama_decode(context_.get(), llama_batch_get_one(tokens, static_cast<std::int32_t>(n))) != 0) {
            throw std::runtime_error("llama_decode failed");
        }
        llama_synchronize(context_.get());
    }

    void clear() { llama_memory_clear(llama_get_memory(context_.get()), false); }

private:
    std::unique_ptr<ggml_threadpool, FreePool> pool_;  // outlives the context that it is attached to
    std::unique_ptr<llama_context, FreeContext> context_;
};

void measure(llama_model * model, int n_threads, unsigned poll, const std::string & test) {
    const std::size_t kind = test.find_first_of("pt");
    const std::size_t n_contexts = kind == 0 ? 1 : std::stoul(test);
    const auto n_tokens = static_cast<std::size_t>(std::stoul(test.substr(kind + 2)));
    const std::size_t n_at_once = test[kind] == 'p' ? std::min<std::size_t>(n_tokens, 512) : 1;
    const auto n_vocab = static_cast<unsigned>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
    std::mt19937 random(0);
    std::vector<llama_token> tokens(n_tokens);
    std::generate(tokens.begin(), tokens.end(), [&] { return static_cast<llama_token>(random() % n_vocab); });
    std::vector<Context> contexts;
    for (std::size_t i = 0; i < n_contexts; ++i) {
        contexts.emplace_back(model, n_tokens, n_threads, poll);
        contexts.back().decode(tokens.data(), n_at_once);
        contexts.back().clear();
    }

    const auto begin = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < n_tokens; i += n_at_once) {
        for (Context & context : contexts) {
            context.decode(tokens.data() + i, std::min(n_at_once, n_tokens - i));
        }
    }
    const double seconds = seconds_since(begin);
    const double cpu_before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::seconds(1));
    std::printf("%s %.6f %.6f\n", test.c_str(), seconds, cpu_seconds() - cpu_before);
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char ** argv) try {
    if (argc < 6) {
        throw std::runtime_error("LIB_FOLDER MODEL.gguf THREADS POLL TEST...");
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    ggml_backend_load_all_from_path(argv[1]);
    llama_backend_init();
    llama_model_params parameters = llama_model_default_params();
    parameters.n_gpu_layers = 0;
    const std::unique_ptr<llama_model, FreeModel> model(llama_model_load_from_file(argv[2], parameters));
    if (!model) {
        throw std::runtime_error(std::string(argv[2]) + ": it does not load");
    }
    for (int i = 5; i < argc; ++i) {
        measure(model.get(), std::stoi(argv[3]), static_cast<unsigned>(std::stoul(argv[4])), argv[i]);
    }
    return 0;
} catch (const std::exception & failure) {
    std::fprintf(stderr, "decode_loop: %s\n", failure.what());
    return 1;
}
