#include "pipeline.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "buffer_pool.h"
#include "error.h"
#include "ggml.h"
#include "progress.h"
#include "quant_type.h"
#include "shutdown.h"

namespace phiggml {

namespace {

// Of each thread: one that it works on, and one that waits for its turn. Beside them is one that is written.
constexpr std::size_t chunks_of_thread = 2;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

std::uint64_t bytes_of_rows(int type, std::int64_t n_rows, std::int64_t n_per_row) {
    return static_cast<std::uint64_t>(n_rows) * static_cast<std::uint64_t>(n_per_row / block_size(type)) *
           block_bytes(type);
}

// What a row takes on its way, beside the piece of it that is converted.
std::uint64_t memory_of_row(const PipelineTensor & tensor, const RowRun & run) {
    const std::uint64_t from = bytes_of_rows(run.type, 1, tensor.n_per_row);
    return run.type == tensor.type ? from : from + bytes_of_rows(tensor.type, 1, tensor.n_per_row);
}

void require_sound(const PipelineTensor & tensor) {
    for (const RowRun & run : tensor.runs) {
        const bool same = run.type == tensor.type && type_exists(run.type);
        const bool converts = type_exists(run.type) && dequantizable(run.type) && type_exists(tensor.type) &&
                              quantizable(tensor.type) && tensor.n_per_row % block_size(tensor.type) == 0;
        if (!(same || converts) || run.n_rows < 0 || tensor.n_per_row < 1 ||
            tensor.n_per_row % block_size(run.type) != 0) {
            throw Error(ErrorKind::input, "quantize: " + tensor.name + ": its rows cannot become what was planned.");
        }
    }
    const auto n_importances = static_cast<std::int64_t>(tensor.imatrix.size());
    if (n_importances > 0 && (n_importances % tensor.n_per_row != 0 || tensor.rows_of_expert < 1)) {
        throw Error(ErrorKind::input, "quantize: " + tensor.name + ": its importances are no rows.");
    }
}

Error named(const std::string & tensor, const Error & error) {
    if (error.kind() == ErrorKind::system) {
        return error;
    }
    Error again = error.kind() == ErrorKind::format ? Error::format(error.message(), error.offset())
                                                    : Error(error.kind(), tensor + ": " + error.message());
    again.with_path(error.path());
    return again;
}

}  // namespace

class Pipeline::Running {
public:
    Running(std::vector<PipelineTensor> tensors, const PipelineSettings & settings);

    bool wait(std::chrono::milliseconds longest);
    std::optional<PipelineChunk> next();
    void close();
    std::vector<QuantizationErrorSums> errors() const;
    PipelineSeconds seconds() const;

private:
    // What is handed out in one piece: rows of one run, for which one row of importances holds.
    struct Task {
        std::size_t tensor;
        std::size_t run;
        std::int64_t first;
        std::int64_t n_rows;
        std::int64_t expert;
    };
    // Of a thread: the rows that it converts. Kept, so that memory does not go to and fro.
    using Scratch = std::unique_ptr<std::uint8_t[]>;
    struct Result {
        bool there = false;
        PipelineChunk chunk;
        QuantizationErrorSums error;
        std::exception_ptr failure;
    };

    void plan_tasks(std::uint64_t memory_of_chunk);
    void start(std::size_t n_threads);
    void work();
    void expect(std::size_t task) const;
    Result carry_out(const Task & task, Scratch & scratch);
    PipelineChunk convert(const Task & task, Scratch & scratch, QuantizationErrorSums & error);
    std::size_t source_bytes(const Task & task) const;
    std::size_t result_bytes(const Task & task) const;
    bool copied(const Task & task) const {
        return tensors_[task.tensor].type == tensors_[task.tensor].runs[task.run].type;
    }
    void count_written();
    bool over() const { return n_handed_out_ == tasks_.size() || progress_.cancelled; }
    Result & turn() { return results_[n_handed_out_ % results_.size()]; }

    std::vector<PipelineTensor> tensors_;
    PipelineSettings settings_;
    std::vector<Task> tasks_;
    std::size_t scratch_bytes_ = 0;
    std::shared_ptr<BufferPool> buffers_;
    Progress progress_;

    mutable std::mutex mutex_;
    std::condition_variable room_;   // for another chunk
    std::condition_variable ready_;  // a chunk
    std::vector<Result> results_;    // of task i at i modulo their number
    std::size_t n_begun_ = 0;
    std::size_t n_handed_out_ = 0;
    std::size_t n_written_ = 0;  // of those: all but the last, until the next is asked for
    std::vector<QuantizationErrorSums> errors_;
    PipelineSeconds seconds_;
    std::vector<std::thread> threads_;
};

Pipeline::Running::Running(std::vector<PipelineTensor> tensors, const PipelineSettings & settings)
    : tensors_(std::move(tensors)), settings_(settings), errors_(tensors_.size()) {
    std::uint64_t largest_row = 1;
    for (const PipelineTensor & tensor : tensors_) {
        require_sound(tensor);
        for (const RowRun & run : tensor.runs) {
            largest_row = std::max(largest_row, memory_of_row(tensor, run));
            if (largest_row > settings.max_memory) {
                throw Error(ErrorKind::input, "max_memory: " + tensor.name + ": one row of it takes " +
                                                  std::to_string(largest_row) + " bytes. Allow more than " +
                                                  std::to_string(settings.max_memory) + ".");
            }
        }
    }
    const auto wanted = static_cast<std::size_t>(std::max(settings.threads, 1)) * chunks_of_thread + 1;
    const std::size_t n_chunks = std::min<std::uint64_t>(wanted, settings.max_memory / largest_row);
    // One more: who asks for the next chunk may hold the last one still.
    plan_tasks(std::max(settings.max_memory / (n_chunks + 1), largest_row));
    results_.resize(n_chunks);
    std::size_t most = 0;
    for (const Task & task : tasks_) {
        most = std::max(most, result_bytes(task));
        scratch_bytes_ = std::max(scratch_bytes_, copied(task) ? 0 : source_bytes(task));
    }
    buffers_ = std::make_shared<BufferPool>(most);
    start(std::min({static_cast<std::size_t>(std::max(settings.threads, 1)), n_chunks, tasks_.size()}));
}

// Where the system gives fewer threads, those do the work.
void Pipeline::Running::start(std::size_t n_threads) {
    try {
        for (std::size_t i = 0; i < n_threads; ++i) {
            threads_.emplace_back([this] { work(); });
        }
    } catch (const std::system_error & error) {
        if (threads_.empty()) {
            throw Error::system(error.code().value(), "");
        }
    }
}

void Pipeline::Running::plan_tasks(std::uint64_t memory_of_chunk) {
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
        const PipelineTensor & tensor = tensors_[t];
        std::int64_t row = 0;
        for (std::size_t r = 0; r < tensor.runs.size(); ++r) {
            const RowRun & run = tensor.runs[r];
            const auto most = static_cast<std::int64_t>(memory_of_chunk / memory_of_row(tensor, run));
            for (std::int64_t first = 0; first < run.n_rows;) {
                std::int64_t n_rows = std::min(most, run.n_rows - first);
                std::int64_t expert = 0;
                if (!tensor.imatrix.empty()) {
                    expert = row / tensor.rows_of_expert;
                    n_rows = std::min(n_rows, (expert + 1) * tensor.rows_of_expert - row);
                }
                tasks_.push_back({t, r, first, n_rows, expert});
                first += n_rows;
                row += n_rows;
            }
        }
    }
}

void Pipeline::Running::expect(std::size_t task) const {
    if (task < tasks_.size()) {
        const PipelineTensor & tensor = tensors_[tasks_[task].tensor];
        const RowRun & run = tensor.runs[tasks_[task].run];
        run.source->expect(run.offset + bytes_of_rows(run.type, tasks_[task].first, tensor.n_per_row),
                           bytes_of_rows(run.type, tasks_[task].n_rows, tensor.n_per_row));
    }
}

void Pipeline::Running::work() {
    Scratch scratch;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        room_.wait(lock, [&] {
            return progress_.cancelled || n_begun_ == tasks_.size() || n_begun_ < n_written_ + results_.size();
        });
        if (progress_.cancelled || n_begun_ == tasks_.size()) {
            return;
        }
        const std::size_t index = n_begun_++;
        lock.unlock();
        Result result;
        {
            const Inside inside;
            expect(index + results_.size());
            result = carry_out(tasks_[index], scratch);
        }
        lock.lock();
        results_[index % results_.size()] = std::move(result);
        ready_.notify_all();
    }
}

Pipeline::Running::Result Pipeline::Running::carry_out(const Task & task, Scratch & scratch) {
    Result result;
    result.there = true;
    try {
        result.chunk = convert(task, scratch, result.error);
    } catch (const Error & error) {
        result.failure = std::make_exception_ptr(named(tensors_[task.tensor].name, error));
    } catch (...) {
        result.failure = std::current_exception();
    }
    return result;
}

std::size_t Pipeline::Running::source_bytes(const Task & task) const {
    const PipelineTensor & tensor = tensors_[task.tensor];
    return bytes_of_rows(tensor.runs[task.run].type, task.n_rows, tensor.n_per_row);
}

std::size_t Pipeline::Running::result_bytes(const Task & task) const {
    const PipelineTensor & tensor = tensors_[task.tensor];
    return bytes_of_rows(tensor.type, task.n_rows, tensor.n_per_row);
}

PipelineChunk Pipeline::Running::convert(const Task & task, Scratch & scratch, QuantizationErrorSums & error) {
    const PipelineTensor & tensor = tensors_[task.tensor];
    const RowRun & run = tensor.runs[task.run];
    PipelineChunk chunk{task.tensor, buffers_->take(), result_bytes(task)};
    if (!copied(task) && !scratch) {
        scratch.reset(new std::uint8_t[scratch_bytes_]);
    }
    std::uint8_t * const rows = copied(task) ? chunk.rows.get() : scratch.get();
    const auto start = Clock::now();
    run.source->read_unchanged(run.offset + bytes_of_rows(run.type, task.first, tensor.n_per_row), source_bytes(task),
                               rows, run.stamp);
    const double reading = seconds_since(start);
    if (copied(task)) {
        require_finite(run.type, rows, task.n_rows * tensor.n_per_row);
    } else {
        const float * imatrix =
            tensor.imatrix.empty() ? nullptr : tensor.imatrix.data() + task.expert * tensor.n_per_row;
        const BlockRows blocks{run.type, rows, task.n_rows, tensor.n_per_row};
        requantize_rows(blocks, {tensor.type, imatrix}, chunk.rows.get(), settings_.measure_error ? &error : nullptr,
                        progress_);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    seconds_.reading += reading;
    seconds_.converting += seconds_since(start) - reading;
    return chunk;
}

// Who asks for the next chunk has done with the last.
void Pipeline::Running::count_written() {
    if (n_written_ != n_handed_out_) {
        n_written_ = n_handed_out_;
        room_.notify_all();
    }
}

bool Pipeline::Running::wait(std::chrono::milliseconds longest) {
    std::unique_lock<std::mutex> lock(mutex_);
    count_written();
    return ready_.wait_for(lock, longest, [&] { return over() || turn().there; });
}

std::optional<PipelineChunk> Pipeline::Running::next() {
    std::unique_lock<std::mutex> lock(mutex_);
    count_written();
    ready_.wait(lock, [&] { return over() || turn().there; });
    if (over()) {
        return std::nullopt;
    }
    Result result = std::exchange(turn(), {});
    if (result.failure) {
        progress_.cancelled = true;
        room_.notify_all();
        std::rethrow_exception(result.failure);
    }
    add_errors(errors_[result.chunk.tensor], result.error);
    ++n_handed_out_;
    return std::move(result.chunk);
}

void Pipeline::Running::close() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        progress_.cancelled = true;
    }
    room_.notify_all();
    ready_.notify_all();
    for (std::thread & thread : threads_) {
        thread.join();
    }
    threads_.clear();
}

std::vector<QuantizationErrorSums> Pipeline::Running::errors() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return errors_;
}

PipelineSeconds Pipeline::Running::seconds() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return seconds_;
}

Pipeline::Pipeline(std::vector<PipelineTensor> tensors, const PipelineSettings & settings)
    : running_(std::make_unique<Running>(std::move(tensors), settings)), generation_(fork_generation()) {}

Pipeline::~Pipeline() {
    close();
    if (generation_ != fork_generation()) {
        // In a forked child its threads are another process's, and what they hold is never let go.
        static_cast<void>(running_.release());
    }
}

bool Pipeline::wait(std::chrono::milliseconds longest) {
    return running_->wait(longest);
}

std::optional<PipelineChunk> Pipeline::next() {
    return running_->next();
}

void Pipeline::close() {
    if (generation_ == fork_generation()) {
        running_->close();
    }
}

std::vector<QuantizationErrorSums> Pipeline::errors() const {
    return running_->errors();
}

PipelineSeconds Pipeline::seconds() const {
    return running_->seconds();
}

}  // namespace phiggml
