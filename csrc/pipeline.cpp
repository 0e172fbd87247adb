#include "pipeline.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "buffer_pool.h"
#include "error.h"
#include "ggml.h"
#include "progress.h"
#include "quant_type.h"
#include "shutdown.h"
#include "wait.h"

namespace phiggml {

namespace {

// Of each thread: one that it works on, and one that waits for its turn. Beside them is one that is written.
constexpr std::uint64_t chunks_of_thread = 2;
// Reading looks so often whether it must stop.
constexpr std::size_t bytes_at_once = std::size_t{16} << 20;
// Far more than a row can have, and so few that no product of sizes overflows.
constexpr std::int64_t most_per_row = std::numeric_limits<std::int64_t>::max() / 256;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

std::uint64_t bytes_of_rows(int type, std::int64_t n_rows, std::int64_t n_per_row) {
    return static_cast<std::uint64_t>(n_rows) * static_cast<std::uint64_t>(n_per_row / block_size(type)) *
           block_bytes(type);
}

// What a row takes as it is read and as it is written, beside the piece of it that is converted.
struct RowMemory {
    std::uint64_t from;
    std::uint64_t to;
    bool copied;

    RowMemory(const PipelineTensor & tensor, const RowRun & run)
        : from(bytes_of_rows(run.type, 1, tensor.n_per_row)),
          to(bytes_of_rows(tensor.type, 1, tensor.n_per_row)),
          copied(run.type == tensor.type) {}

    std::uint64_t sum() const { return copied ? to : from + to; }
    std::uint64_t larger() const { return std::max(from, to); }
};

void require_sound(const PipelineTensor & tensor) {
    for (const RowRun & run : tensor.runs) {
        const bool same = run.type == tensor.type && type_exists(run.type);
        const bool converts = type_exists(run.type) && dequantizable(run.type) && type_exists(tensor.type) &&
                              quantizable(tensor.type) && tensor.n_per_row % block_size(tensor.type) == 0;
        if (!(same || converts) || run.n_rows < 0 || tensor.n_per_row < 1 || tensor.n_per_row > most_per_row ||
            tensor.n_per_row % block_size(run.type) != 0) {
            throw Error(ErrorKind::input, "quantize: " + tensor.name + ": its rows cannot become what was planned.");
        }
        const std::uint64_t size = run.source->size();
        const std::uint64_t room = (size - std::min(run.offset, size)) / RowMemory(tensor, run).from;
        if (static_cast<std::uint64_t>(run.n_rows) > room) {
            throw Error::format("quantize: " + tensor.name + ": it reaches beyond the end of " + run.source->name() +
                                ". Copy the file anew.")
                .with_path(run.source->name());
        }
    }
}

// One row of importances for each expert, or none at all.
void require_importances(const PipelineTensor & tensor) {
    if (tensor.imatrix.empty()) {
        return;
    }
    std::uint64_t n_rows = 0;
    for (const RowRun & run : tensor.runs) {
        n_rows += static_cast<std::uint64_t>(run.n_rows);
    }
    const auto n_per_row = static_cast<std::uint64_t>(tensor.n_per_row);
    const auto rows_of_expert = static_cast<std::uint64_t>(tensor.rows_of_expert);
    if (tensor.rows_of_expert < 1 || tensor.imatrix.size() % n_per_row != 0 ||
        (n_rows > 0 && (n_rows - 1) / rows_of_expert >= tensor.imatrix.size() / n_per_row)) {
        throw Error(ErrorKind::input, "quantize: " + tensor.name + ": its importances do not fit its rows.");
    }
}

// The same with the tensor's name behind the operation.
Error named(const std::string & tensor, const Error & error) {
    if (error.kind() == ErrorKind::system) {
        return error;
    }
    if (error.kind() == ErrorKind::format) {
        return Error::format(error.message(), error.offset()).with_path(error.path());
    }
    constexpr std::string_view operation = "quantize: ";
    const std::string & message = error.message();
    const std::size_t begin = message.compare(0, operation.size(), operation) == 0 ? operation.size() : 0;
    return {error.kind(), std::string(operation) + tensor + ": " + message.substr(begin)};
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
        std::size_t tensor = 0;
        std::size_t run = 0;
        std::int64_t first = 0;
        std::int64_t n_rows = 0;
        std::int64_t expert = 0;
    };
    // Of a thread: the rows that it converts. Kept, so that memory does not go to and fro.
    using Scratch = std::unique_ptr<std::uint8_t[]>;
    using Lock = std::unique_lock<std::mutex>;
    struct Result {
        bool there = false;
        PipelineChunk chunk;
        QuantizationErrorSums error;
        std::exception_ptr failure;
    };

    std::uint64_t require_sound_tensors() const;
    void share_memory(std::uint64_t largest_row);
    std::int64_t rows_at_once(const PipelineTensor & tensor, const RowRun & run) const;
    bool plan_next();
    void start();
    void work();
    void begin_next(Lock & lock, Scratch & scratch);
    void expect(const Task & task) const;
    Result carry_out(const Task & task, const std::optional<Task> & last, Scratch & scratch);
    PipelineChunk convert(const Task & task, Scratch & scratch, QuantizationErrorSums & error);
    void read(const Task & task, std::uint8_t * rows) const;
    std::size_t source_bytes(const Task & task) const;
    std::size_t result_bytes(const Task & task) const;
    bool copied(const Task & task) const {
        return tensors_[task.tensor].type == tensors_[task.tensor].runs[task.run].type;
    }
    void count_written();
    bool all_begun() const { return n_begun_ == n_planned_; }
    bool over() const { return (all_begun() && n_handed_out_ == n_begun_) || progress_.cancelled; }
    bool has_room() const { return n_begun_ < n_written_ + results_.size(); }
    Result & turn() { return results_[n_handed_out_ % results_.size()]; }

    std::vector<PipelineTensor> tensors_;
    PipelineSettings settings_;
    std::size_t n_threads_ = 1;
    std::uint64_t memory_of_chunk_ = 0;  // as it is read, and again as it is written
    std::size_t scratch_bytes_ = 0;
    std::shared_ptr<BufferPool> buffers_;
    Progress progress_;
    const bool at_the_end_ = process_ends();  // made by the thread that ends the process, which waits for it

    mutable std::mutex mutex_;
    std::condition_variable room_;   // for another chunk
    std::condition_variable ready_;  // a chunk
    std::vector<Task> ahead_;        // task i at i modulo their number, from the first that is not begun
    Task cursor_;                    // where the next that is planned begins
    std::int64_t row_ = 0;           // the same in its tensor
    std::vector<Result> results_;    // of task i at i modulo their number
    std::size_t n_planned_ = 0;      // as many ahead as there are results, or all
    std::size_t n_begun_ = 0;
    std::size_t n_handed_out_ = 0;
    std::size_t n_written_ = 0;  // of those: all but the last, until the next is asked for
    std::vector<QuantizationErrorSums> errors_;
    PipelineSeconds seconds_;
    Scratch own_scratch_;  // of the thread that asks, where there is no other
    std::vector<std::thread> threads_;
};

Pipeline::Running::Running(std::vector<PipelineTensor> tensors, const PipelineSettings & settings)
    : tensors_(std::move(tensors)), settings_(settings), errors_(tensors_.size()) {
    share_memory(require_sound_tensors());
    std::size_t most = 0;
    for (const PipelineTensor & tensor : tensors_) {
        for (const RowRun & run : tensor.runs) {
            const RowMemory row(tensor, run);
            const auto n_rows = static_cast<std::size_t>(rows_at_once(tensor, run));
            most = std::max<std::size_t>(most, n_rows * row.to);
            scratch_bytes_ = std::max<std::size_t>(scratch_bytes_, row.copied ? 0 : n_rows * row.from);
        }
    }
    buffers_ = std::make_shared<BufferPool>(most);
    while (n_planned_ < ahead_.size() && plan_next()) {
    }
    start();
}

// Returns the larger of what the largest row takes as it is read and as it is written, or 1.
std::uint64_t Pipeline::Running::require_sound_tensors() const {
    std::uint64_t largest = 1;
    for (const PipelineTensor & tensor : tensors_) {
        require_sound(tensor);
        require_importances(tensor);
        for (const RowRun & run : tensor.runs) {
            const RowMemory row(tensor, run);
            if (row.sum() > settings_.max_memory) {
                throw Error(ErrorKind::input, "max_memory: " + tensor.name + ": one row of it takes " +
                                                  std::to_string(row.sum()) + " bytes. Allow more than " +
                                                  std::to_string(settings_.max_memory) + ".");
            }
            largest = std::max(largest, row.larger());
        }
    }
    return largest;
}

// Among chunks that are on their way or handed out, and what each thread reads to convert it. Memory goes round among
// tensors of all types, so it adds up as if all were of the largest. One row at a time may take up to three times of
// it.
void Pipeline::Running::share_memory(std::uint64_t largest_row) {
    const std::uint64_t most_shares = settings_.max_memory / largest_row;
    const auto wanted = static_cast<std::uint64_t>(std::max(settings_.threads, 1));
    const std::uint64_t n_threads = std::clamp<std::uint64_t>(most_shares / (chunks_of_thread + 1), 1, wanted);
    const std::uint64_t most_chunks = most_shares > n_threads + 2 ? most_shares - n_threads - 1 : 1;
    const std::uint64_t n_chunks = std::min(most_chunks, wanted * chunks_of_thread + 1);
    // One more: who asks for the next chunk may hold the last one still.
    memory_of_chunk_ = std::max(settings_.max_memory / (n_chunks + 1 + n_threads), largest_row);
    n_threads_ = n_threads;
    results_.resize(n_chunks);
    ahead_.resize(n_chunks);
}

std::int64_t Pipeline::Running::rows_at_once(const PipelineTensor & tensor, const RowRun & run) const {
    const auto most = static_cast<std::int64_t>(memory_of_chunk_ / RowMemory(tensor, run).larger());
    const std::int64_t n_rows = std::min(most, run.n_rows);
    return tensor.imatrix.empty() ? n_rows : std::min(n_rows, tensor.rows_of_expert);
}

// As they are needed, for a large file in small chunks has billions. Returns whether there was another one.
bool Pipeline::Running::plan_next() {
    for (; cursor_.tensor < tensors_.size(); ++cursor_.tensor, cursor_.run = 0, row_ = 0) {
        const PipelineTensor & tensor = tensors_[cursor_.tensor];
        for (; cursor_.run < tensor.runs.size(); ++cursor_.run, cursor_.first = 0) {
            const RowRun & run = tensor.runs[cursor_.run];
            if (cursor_.first == run.n_rows) {
                continue;
            }
            Task & task = ahead_[n_planned_ % ahead_.size()];
            task = cursor_;
            task.n_rows = std::min(rows_at_once(tensor, run), run.n_rows - cursor_.first);
            if (!tensor.imatrix.empty()) {
                task.expert = row_ / tensor.rows_of_expert;
                task.n_rows = std::min(task.n_rows, tensor.rows_of_expert - row_ % tensor.rows_of_expert);
            }
            cursor_.first += task.n_rows;
            row_ += task.n_rows;
            ++n_planned_;
            return true;
        }
    }
    return false;
}

// Where the system gives fewer threads, those do the work; where it gives none, who asks for the chunks does.
void Pipeline::Running::start() {
    n_threads_ = std::min({n_threads_, results_.size(), n_planned_});
    threads_.reserve(n_threads_);
    try {
        while (threads_.size() < n_threads_) {
            threads_.emplace_back([this] { work(); });
        }
    } catch (const std::exception &) {
        n_threads_ = threads_.size();
    }
}

void Pipeline::Running::expect(const Task & task) const {
    const PipelineTensor & tensor = tensors_[task.tensor];
    const RowRun & run = tensor.runs[task.run];
    run.source->expect(run.offset + bytes_of_rows(run.type, task.first, tensor.n_per_row), source_bytes(task));
}

void Pipeline::Running::work() {
    Scratch scratch;
    Lock lock(mutex_);
    while (true) {
        wait_until_true(room_, lock, [&] { return progress_.cancelled || all_begun() || has_room(); });
        if (progress_.cancelled || all_begun()) {
            return;
        }
        begin_next(lock, scratch);
    }
}

void Pipeline::Running::begin_next(Lock & lock, Scratch & scratch) {
    const std::size_t index = n_begun_;
    const Task task = ahead_[index % ahead_.size()];
    ++n_begun_;
    const bool more = plan_next();
    const std::optional<Task> last = more ? std::optional<Task>(ahead_[index % ahead_.size()]) : std::nullopt;
    lock.unlock();
    Result result = carry_out(task, last, scratch);
    lock.lock();
    results_[index % results_.size()] = std::move(result);
    ready_.notify_all();
}

// Lets nothing out of its thread.
Pipeline::Running::Result Pipeline::Running::carry_out(const Task & task, const std::optional<Task> & last,
                                                       Scratch & scratch) {
    Result result;
    result.there = true;
    // Never waits, for it may be waited for: as the process ends, pipelines that were left open are closed.
    const Inside inside(Inside::Always::yes);
    try {
        try {
            if (process_ends() && !at_the_end_) {
                throw Cancelled();
            }
            if (last) {
                expect(*last);
            }
            result.chunk = convert(task, scratch, result.error);
        } catch (const Cancelled &) {
            throw Error(ErrorKind::session, "quantize: it was stopped, as the process ends.");
        } catch (const Error & error) {
            throw named(tensors_[task.tensor].name, error);
        }
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
    read(task, rows);
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

void Pipeline::Running::read(const Task & task, std::uint8_t * rows) const {
    const PipelineTensor & tensor = tensors_[task.tensor];
    const RowRun & run = tensor.runs[task.run];
    const std::uint64_t offset = run.offset + bytes_of_rows(run.type, task.first, tensor.n_per_row);
    const std::size_t nbytes = source_bytes(task);
    for (std::size_t done = 0; done < nbytes; done += bytes_at_once) {
        if (progress_.stopped()) {
            throw Cancelled();
        }
        run.source->read_unchanged(offset + done, std::min(bytes_at_once, nbytes - done), rows + done, run.stamp);
    }
}

// Who asks for the next chunk has done with the last.
void Pipeline::Running::count_written() {
    if (n_written_ != n_handed_out_) {
        n_written_ = n_handed_out_;
        room_.notify_all();
    }
}

bool Pipeline::Running::wait(std::chrono::milliseconds longest) {
    Lock lock(mutex_);
    count_written();
    return ready_.wait_for(lock, longest, [&] { return n_threads_ == 0 || over() || turn().there; });
}

std::optional<PipelineChunk> Pipeline::Running::next() {
    Lock lock(mutex_);
    count_written();
    if (n_threads_ == 0 && !over()) {
        begin_next(lock, own_scratch_);
    }
    wait_until_true(ready_, lock, [&] { return over() || turn().there; });
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

void Pipeline::require_threads() const {
    if (generation_ != fork_generation()) {
        throw Error(
            ErrorKind::session,
            "quantize: it began before this process was forked off, and its threads are not here. Begin again.");
    }
}

bool Pipeline::wait(std::chrono::milliseconds longest) {
    require_threads();
    return running_->wait(longest);
}

std::optional<PipelineChunk> Pipeline::next() {
    require_threads();
    return running_->next();
}

void Pipeline::close() {
    if (generation_ == fork_generation()) {
        running_->close();
    }
}

std::vector<QuantizationErrorSums> Pipeline::errors() const {
    return generation_ == fork_generation() ? running_->errors() : std::vector<QuantizationErrorSums>();
}

PipelineSeconds Pipeline::seconds() const {
    return generation_ == fork_generation() ? running_->seconds() : PipelineSeconds();
}

}  // namespace phiggml
