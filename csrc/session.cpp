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

template <typename Function>
Function cpu_function(const char * name) {
    const ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name));
}

extern "C" bool is_cancelled(void * user_data) {
    return static_cast<const Session *>(user_data)->stopped();
}

}  // namespace

Session::Use::Use(const Session & session, bool may_be_closed) : session_(session) {
    if (session_.lost_user()) {
        throw Error(ErrorKind::session,
                    "session: it was made before this process was forked off, and a thread that is not here was using "
                    "it. Make a new one from the Model.");
    }
    std::uint64_t nobody = 0;
    if (!session_.user_.compare_exchange_strong(nobody, fork_generation() + 1)) {
        throw Error(
            ErrorKind::session,
            "session: another thread is using it. Give each thread a Session of its own; they share the Model.");
    }
    if ((session_.closed() && !may_be_closed) || session_.lost_threads()) {
        session_.user_ = 0;
        throw Error(ErrorKind::session,
                    session_.closed() ? "session: it is closed. Make a new one from the Model."
                                      : "session: it was made before this process was forked off, and its threads are "
                                        "not here. Make a new one from the Model.");
    }
}

Session::Use::~Use() {
    session_.user_ = 0;
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
    if (model_->has_decoder() && !model_->looks_ahead()) {
        make_context();
        generates_ = llama_get_memory(context_.get()) != nullptr;
    }
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
    parameters.abort_callback_data = this;
    parameters.swa_full = settings_.swa_full;
    parameters.no_perf = true;
    const LogMark mark;
    {
        const std::shared_lock<std::shared_mutex> still(model_->adapters_mutex());
        context_.reset(llama_init_from_model(model_->handle(), parameters));
    }
    if (!context_) {
        mark.check_device_memory("session",
                                 "Choose a smaller n_ctx or n_batch, hold fewer layers there (n_gpu_layers), or pass "
                                 "offload_kv=False");
        throw Error(ErrorKind::session, "session: llama.cpp could not make a context of " +
                                            std::to_string(settings_.n_ctx) + " tokens: " + mark.first_error() +
                                            " Try a smaller n_ctx or n_batch.");
    }
}

Session::~Session() {
    free();
}

namespace {

// Leaves a value where it is for good.
template <typename Value>
void abandon(Value & value) {
    static_cast<void>(std::make_unique<Value>(std::move(value)).release());
    value = Value();
}

}  // namespace

// A thread that is not here was changing these when the process was forked: they may be half of what they were to be.
void Session::abandon_all() {
    abandon(embedder_);
    abandon(context_);
    abandon(threadpool_);
    abandon(loras_);
    abandon(control_vector_);
    abandon(sequences_);
    abandon(rows_);
    abandon(undo_);
}

void Session::free() {
    if (lost_user()) {
        abandon_all();
    }
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

bool Session::lost_user() const {
    const std::uint64_t user = user_;
    return user != 0 && user != fork_generation() + 1;
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
    if (threadpool_ && context_) {
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

void Session::forget(bool with_numbers) {
    if (generates_) {
        llama_memory_clear(llama_get_memory(context_.get()), with_numbers);
    }
}

void Session::evaluate_anew() {
    forget(false);
    for (Sequence & sequence : sequences_) {
        sequence.n_evaluated = 0;
    }
    rows_.clear();
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

void Session::reset() {
    const Use use(*this);
    forget(true);
    std::fill(sequences_.begin(), sequences_.end(), Sequence{});
    rows_.clear();
}

void Session::reset(std::int64_t sequence) {
    const Use use(*this);
    truncate(0, sequence);
}

void Session::fork(std::int64_t source, std::int64_t target) {
    const Use use(*this);
    const Sequence & copied = at(source);
    static_cast<void>(at(target));
    if (source == target || !generates_) {
        return;
    }
    const llama_memory_t memory = llama_get_memory(context_.get());
    const auto from = static_cast<llama_seq_id>(source), to = static_cast<llama_seq_id>(target);
    llama_memory_seq_rm(memory, to, -1, -1);
    if (copied.n_evaluated > 0) {
        llama_memory_seq_cp(memory, from, to, -1, -1);
    }
    sequence_at(target) = copied;
}

void Session::allow() {
    const Use use(*this);
    cancelled_ = false;
}

bool Session::stopped() const {
    const Progress * progress = progress_;
    return cancelled_ || (progress != nullptr && progress->stopped());
}

void Session::close() {
    std::optional<Use> use;
    if (!lost_threads() && !lost_user()) {
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
