#include "session.h"

#include <algorithm>
#include <cmath>
#include <shared_mutex>
#include <utility>

#include "batch.h"
#include "error.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "llama.h"
#include "quant_type.h"
#include "runtime.h"
#include "shutdown.h"
#include "threads.h"
#include "upstream/llama_model.h"

namespace phiggml {

namespace {

// ggml's own ceiling, GGML_MAX_N_THREADS, beyond which it asserts.
constexpr int most_threads = GGML_MAX_N_THREADS;

template <typename Function>
Function cpu_function(const char * name) {
    const ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name));
}

void require(bool holds, const std::string & sentence) {
    if (!holds) {
        throw Error(ErrorKind::input, "session: " + sentence);
    }
}

// Those for which ggml can write rows into a cache and attend to them.
bool is_cache_type(int type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_IQ4_NL: return true;
        default: return false;
    }
}

void check_cache_type(int type, const char * name, std::int64_t head_size) {
    require(is_cache_type(type),
            std::string(name) + ": the KV cache takes F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or IQ4_NL.");
    require(head_size % block_size(type) == 0, std::string(name) + ": " + type_name(type) +
                                                   " needs a head size that is a multiple of " +
                                                   std::to_string(block_size(type)) + ". Choose F16.");
}

// Upstream asserts that a device can work on what it is given to hold.
void check_cache_device(const SessionSettings & s, const Model & model) {
    if (!s.offload_kv) {
        return;
    }
    if (const auto unfit = upstream::unfit_cache(*model.handle(), s.type_k, s.type_v, s.n_ctx * s.n_seq_max)) {
        throw Error(ErrorKind::device, "session: " + unfit->device + " cannot take the " + unfit->name +
                                           " of a layer, " + type_name(s.type_k) + "/" + type_name(s.type_v) + ", " +
                                           std::to_string(unfit->n_bytes) +
                                           " bytes in one piece. Choose a smaller n_ctx or other types, or pass "
                                           "offload_kv=False.");
    }
}

// A cache that the machine cannot hold would end the process when it is filled, not when it is asked for.
void check_cache_size(const SessionSettings & s, const Model & model) {
    constexpr std::int64_t granularity = 256;  // upstream rounds each sequence's part up to it
    const std::int64_t n_cells = (s.n_ctx + granularity - 1) / granularity * granularity * s.n_seq_max;
    const upstream::HeadSizes head = upstream::head_sizes(*model.handle());
    const double heads = static_cast<double>(n_cells) * model.n_layer() * llama_model_n_head_kv(model.handle());
    const auto bytes_each = [](int type) {
        return static_cast<double>(block_bytes(type)) / static_cast<double>(block_size(type));
    };
    const double bytes = heads * (static_cast<double>(head.key) * bytes_each(s.type_k) +
                                  static_cast<double>(head.value) * bytes_each(s.type_v));
    double memory = 0;
    for (const DeviceInfo & device : list_devices()) {
        memory += static_cast<double>(device.memory_total);
    }
    constexpr double gigabyte = 1e9;
    if (bytes > memory) {
        throw Error(ErrorKind::session,
                    "session: the KV cache of " + std::to_string(s.n_ctx * s.n_seq_max) + " tokens takes " +
                        std::to_string(static_cast<long>(bytes / gigabyte)) + " GB; the machine has " +
                        std::to_string(static_cast<long>(memory / gigabyte)) + " GB. Choose a smaller n_ctx.");
    }
}

void check(const SessionSettings & s, const Model & model) {
    constexpr std::int64_t most_tokens = 1 << 30;
    require(s.n_ctx >= 1 && s.n_ctx <= most_tokens,
            "n_ctx is " + std::to_string(s.n_ctx) + "; it must be between 1 and 2^30.");
    const std::int64_t most_positions = upstream::most_positions(*model.handle());
    require(s.n_ctx <= most_positions, "n_ctx is " + std::to_string(s.n_ctx) + "; this model has a table of " +
                                           std::to_string(most_positions) + " positions.");
    require(s.n_batch >= 1 && s.n_batch <= most_tokens,
            "n_batch is " + std::to_string(s.n_batch) + "; it must be between 1 and 2^30.");
    const auto most_sequences = static_cast<std::int64_t>(llama_max_parallel_sequences());
    require(s.n_seq_max >= 1 && s.n_seq_max <= most_sequences && s.n_ctx * s.n_seq_max <= most_tokens,
            "n_seq_max is " + std::to_string(s.n_seq_max) + "; it must be between 1 and " +
                std::to_string(most_sequences) + ", and n_ctx * n_seq_max at most 2^30.");
    require(
        s.threads >= 1 && s.threads <= most_threads,
        "threads is " + std::to_string(s.threads) + "; it must be between 1 and " + std::to_string(most_threads) + ".");
    const upstream::HeadSizes head = upstream::head_sizes(*model.handle());
    check_cache_type(s.type_k, "type_k", head.key);
    check_cache_type(s.type_v, "type_v", head.value);
    require(block_size(s.type_v) == 1 || s.flash_attn != false,
            "type_v: a quantized V cache needs flash attention. Leave flash_attn at \"auto\" or True, or choose F16.");
    if (!model.has_decoder() && !Embedder::takes(model)) {
        throw Error(ErrorKind::unsupported,
                    "session: this model reads one text to write another; phiggml runs decoder models, and those "
                    "that embed texts.");
    }
    check_cache_device(s, model);
    if (!model.no_alloc()) {
        check_cache_size(s, model);
    }
}

extern "C" bool is_cancelled(void * user_data) {
    const Progress * progress = static_cast<std::atomic<Progress *> *>(user_data)->load();
    return progress != nullptr && progress->stopped();
}

}  // namespace

Session::Use::Use(const Session & session, bool may_be_closed) : session_(session) {
    if (session_.in_use_.exchange(true)) {
        throw Error(
            ErrorKind::session,
            "session: another thread is using it. Give each thread a Session of its own; they share the Model.");
    }
    if ((session_.closed() && !may_be_closed) || session_.lost_threads()) {
        session_.in_use_ = false;
        throw Error(ErrorKind::session,
                    session_.closed() ? "session: it is closed. Make a new one from the Model."
                                      : "session: it was made before this process was forked off, and its threads are "
                                        "not here. Make a new one from the Model.");
    }
}

Session::Use::~Use() {
    session_.in_use_ = false;
}

void Session::FreeContext::operator()(llama_context * context) const {
    llama_free(context);
}

void Session::FreeThreadpool::operator()(ggml_threadpool * pool) const {
    cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")(pool);
}

Session::Session(std::shared_ptr<const Model> model, const SessionSettings & settings)
    : model_(std::move(model)),
      settings_(settings),
      n_bytes_(model_->n_bytes()),
      generation_(fork_generation()),
      rope_line_(arch::long_rope_line(*model_->handle())) {
    check(settings_, *model_);
    sequences_.resize(static_cast<std::size_t>(settings_.n_seq_max));
    make_context();
    generates_ = model_->has_decoder() && !model_->looks_ahead() && llama_get_memory(context_.get()) != nullptr;
    attach_threadpool();
}

void Session::make_context() {
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = static_cast<std::uint32_t>(settings_.n_ctx * settings_.n_seq_max);
    // Upstream asserts that a batch has room for a token of each sequence.
    const std::int64_t n_batch = std::max(std::min(settings_.n_batch, settings_.n_ctx), settings_.n_seq_max);
    parameters.n_batch = static_cast<std::uint32_t>(n_batch);
    parameters.n_ubatch = std::min<std::uint32_t>(parameters.n_batch, 512);
    parameters.n_seq_max = static_cast<std::uint32_t>(settings_.n_seq_max);
    parameters.n_threads = settings_.threads;
    parameters.n_threads_batch = settings_.threads;
    parameters.type_k = static_cast<ggml_type>(settings_.type_k);
    parameters.type_v = static_cast<ggml_type>(settings_.type_v);
    parameters.flash_attn_type = !settings_.flash_attn          ? LLAMA_FLASH_ATTN_TYPE_AUTO
                                 : settings_.flash_attn.value() ? LLAMA_FLASH_ATTN_TYPE_ENABLED
                                                                : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    parameters.offload_kqv = settings_.offload_kv;
    parameters.abort_callback = is_cancelled;
    parameters.abort_callback_data = &progress_;
    parameters.no_perf = true;
    const LogMark mark;
    {
        const std::shared_lock<std::shared_mutex> still(model_->adapters_mutex());
        context_.reset(llama_init_from_model(model_->handle(), parameters));
    }
    if (!context_) {
        throw Error(ErrorKind::session, "session: llama.cpp could not make a context of " +
                                            std::to_string(settings_.n_ctx) + " tokens: " + mark.first_error() +
                                            " Try a smaller n_ctx or n_batch.");
    }
}

Session::~Session() {
    free();
}

void Session::free() {
    embedder_.reset();
    context_.reset();
    loras_.clear();
    if (lost_threads()) {
        static_cast<void>(threadpool_.release());  // freeing it would wait for its threads
    }
    threadpool_.reset();
}

bool Session::lost_threads() const {
    return settings_.threads > 1 && generation_ != fork_generation();
}

void Session::attach_threadpool() {
    // Without a pool of its own ggml would start threads anew for every graph.
    if (settings_.threads == 1) {
        return;
    }
    if (!threads_start(settings_.threads - 1)) {  // ggml asserts that they do
        throw Error(ErrorKind::session, "session: the system does not let this process start " +
                                            std::to_string(settings_.threads - 1) + " threads. Choose fewer.");
    }
    ggml_threadpool_params parameters = ggml_threadpool_params_default(settings_.threads);
    parameters.poll = 1;  // some milliseconds of waiting for the next call, then sleep (benchmarks/bench_threads.py)
    threadpool_.reset(cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new")(&parameters));
    if (threadpool_) {
        llama_attach_threadpool(context_.get(), threadpool_.get(), threadpool_.get());
    }
}

const Session::Sequence & Session::at(std::int64_t sequence) const {
    if (sequence < 0 || sequence >= settings_.n_seq_max) {
        throw Error(ErrorKind::input, "session: sequence is " + std::to_string(sequence) + "; there are " +
                                          std::to_string(settings_.n_seq_max) + " (n_seq_max), counted from 0.");
    }
    return sequences_[static_cast<std::size_t>(sequence)];
}

void Session::check_tokens(const std::vector<std::int32_t> & tokens, const Sequence & sequence) const {
    if (!generates_) {
        throw Error(ErrorKind::unsupported, "session: this model generates no text. Embed texts with it.");
    }
    if (tokens.empty()) {
        throw Error(ErrorKind::input, "eval: there are no tokens. Pass at least one.");
    }
    const int n_vocab = model_->n_vocab();
    for (const std::int32_t token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw Error(ErrorKind::input, "eval: token " + std::to_string(token) + " is not in the vocabulary of " +
                                              std::to_string(n_vocab) + ".");
        }
    }
    const auto n_total = static_cast<std::int64_t>(sequence.tokens.size() + tokens.size());
    if (n_total <= settings_.n_ctx) {
        return;
    }
    const std::string offered = std::to_string(tokens.size()), most = std::to_string(settings_.n_ctx);
    if (sequence.tokens.empty()) {
        throw Error(ErrorKind::session, "eval: " + offered + " tokens do not fit into n_ctx = " + most +
                                            ". Make a session with a larger n_ctx.");
    }
    throw Error(ErrorKind::session, "eval: the context holds " + std::to_string(sequence.tokens.size()) +
                                        " of n_ctx = " + most + " tokens: there is no room for " + offered +
                                        " more. Reset the session, or make one with a larger n_ctx.");
}

// Keeps the first n_tokens of what is in the cache; nothing where the model's memory cannot go back to there.
void Session::keep(std::int64_t sequence, std::size_t n_tokens) {
    forget_from(context_.get(), static_cast<std::int32_t>(sequence), static_cast<std::int32_t>(n_tokens));
    const llama_pos last =
        llama_memory_seq_pos_max(llama_get_memory(context_.get()), static_cast<llama_seq_id>(sequence));
    sequences_[static_cast<std::size_t>(sequence)].n_evaluated = static_cast<std::size_t>(last + 1);
}

arch::RopeSide Session::rope_side(std::size_t n_total) const {
    return rope_line_ > 0 && n_total > rope_line_ ? arch::RopeSide::beyond : arch::RopeSide::within;
}

std::uint64_t Session::cost(std::size_t n_tokens, std::int64_t sequence) const {
    const Sequence & s = at(sequence);
    const std::size_t n_total = s.tokens.size() + n_tokens;
    return n_bytes_ * (n_total - (rope_side(n_total) == s.rope_side ? s.n_evaluated : 0));
}

void Session::choose_rope_side(std::int64_t sequence, std::size_t n_total) {
    Sequence & s = sequences_[static_cast<std::size_t>(sequence)];
    const arch::RopeSide side = rope_side(n_total);
    if (side == s.rope_side) {
        return;
    }
    if (s.n_evaluated > 0) {
        log_debug("session: with " + std::to_string(n_total) + " tokens the sequence crosses the line of long rope, " +
                  std::to_string(rope_line_) + "; its " + std::to_string(s.tokens.size()) +
                  " tokens are evaluated again.\n");
        keep(sequence, 0);
    }
    s.rope_side = side;
}

void Session::decode(const std::vector<std::int32_t> & tokens, bool all_logits, std::int64_t sequence,
                     Progress & progress, std::vector<float> * out) {
    check_tokens(tokens, at(sequence));
    Sequence & s = sequences_[static_cast<std::size_t>(sequence)];
    has_logits_ = false;
    const std::size_t n_before = s.tokens.size();
    choose_rope_side(sequence, n_before + tokens.size());
    const std::size_t n_again = n_before - s.n_evaluated;
    s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
    const std::size_t n_work = s.tokens.size() - s.n_evaluated;
    BatchRequest request{s.tokens.data() + s.n_evaluated, n_work};
    request.sequence = static_cast<std::int32_t>(sequence);
    request.first_position = static_cast<std::int32_t>(s.n_evaluated);
    request.n_silent = all_logits ? n_again : n_work - 1;
    request.rope_side = s.rope_side;
    progress.total = n_work;
    progress_ = &progress;
    const auto n_vocab = static_cast<std::size_t>(model_->n_vocab());
    std::shared_lock<std::shared_mutex> still(model_->adapters_mutex(), std::defer_lock);
    if (plans_anew_) {
        still.lock();
    }
    try {
        decode_in_batches(context_.get(), request, [&](const float * logits, std::size_t n_rows) {
            if (out != nullptr) {
                out->insert(out->end(), logits, logits + n_rows * n_vocab);
            }
        });
    } catch (...) {
        progress_ = nullptr;
        s.tokens.resize(n_before);
        keep(sequence, s.n_evaluated);
        throw;
    }
    progress_ = nullptr;
    s.n_evaluated = s.tokens.size();
    has_logits_ = true;
    plans_anew_ = false;
}

void Session::evaluate_anew() {
    llama_memory_clear(llama_get_memory(context_.get()), false);
    for (Sequence & sequence : sequences_) {
        sequence.n_evaluated = 0;
    }
    has_logits_ = false;
    plans_anew_ = true;
    embedder_.reset();
}

void Session::set_lora(std::vector<ScaledLora> loras) {
    const Use use(*this);
    if (loras != loras_) {
        apply_loras(context_.get(), *model_, loras);
        loras_ = std::move(loras);
        evaluate_anew();
    }
}

void Session::set_control_vector(ControlVector vector) {
    const Use use(*this);
    if (vector.rows == control_vector_.rows) {
        return;
    }
    if (!generates_ || !upstream::adds_control_vectors(*model_->handle())) {
        throw Error(ErrorKind::unsupported,
                    "set_control_vector: llama.cpp's graph of this model's architecture adds none.");
    }
    if (control_vector_failed_) {  // upstream would go on with what it could not allocate
        throw Error(ErrorKind::device, "set_control_vector: there was no room for one. Make a new Session.");
    }
    check_control_vector(*model_, vector);
    control_vector_failed_ = true;
    apply_control_vector(context_.get(), *model_, vector);
    control_vector_failed_ = false;
    control_vector_ = std::move(vector);
    evaluate_anew();
}

std::vector<float> Session::embed(const EmbedRequest & request, Progress & progress) {
    const std::int64_t longest = longest_text(request, settings_.n_ctx);
    if (!embedder_ || embedder_->n_ctx() < longest) {
        embedder_.reset();
        EmbedderSettings settings;
        settings.n_ctx = longest;
        settings.type_k = settings_.type_k;
        settings.type_v = settings_.type_v;
        settings.flash_attn = settings_.flash_attn;
        settings.threads = settings_.threads;
        embedder_ = std::make_unique<Embedder>(model_, settings, threadpool_.get(), loras_, control_vector_);
    }
    return embedder_->embed(request, progress);
}

void Session::truncate(std::size_t n_tokens, std::int64_t sequence) {
    if (n_tokens >= at(sequence).tokens.size()) {
        return;
    }
    sequences_[static_cast<std::size_t>(sequence)].tokens.resize(n_tokens);
    has_logits_ = false;
    keep(sequence, n_tokens);
}

std::vector<float> Session::eval(const std::vector<std::int32_t> & tokens, bool all_logits, std::int64_t sequence,
                                 Progress & progress) {
    std::vector<float> logits;
    logits.reserve((all_logits ? tokens.size() : 1) * static_cast<std::size_t>(model_->n_vocab()));
    decode(tokens, all_logits, sequence, progress, &logits);
    return logits;
}

void Session::prefill(const std::vector<std::int32_t> & tokens, Progress & progress) {
    decode(tokens, false, 0, progress, nullptr);
}

std::int32_t Session::sample(Sampler & sampler) {
    const Use use(*this);
    if (!has_logits_) {
        throw Error(ErrorKind::session, "sample: there are no logits yet. Evaluate a token first.");
    }
    return sampler.sample(llama_get_logits_ith(context_.get(), -1));
}

void Session::reset() {
    const Use use(*this);
    llama_memory_clear(llama_get_memory(context_.get()), true);
    std::fill(sequences_.begin(), sequences_.end(), Sequence{});
    has_logits_ = false;
}

void Session::reset(std::int64_t sequence) {
    const Use use(*this);
    truncate(0, sequence);
}

void Session::close() {
    std::optional<Use> use;
    if (!lost_threads()) {
        use.emplace(*this, true);
    }
    if (closed()) {
        return;
    }
    closed_ = true;
    free();
    model_.reset();
    sequences_.clear();
}

std::vector<std::int32_t> Session::tokens(std::int64_t sequence) const {
    const Use use(*this);
    return at(sequence).tokens;
}

}  // namespace phiggml
