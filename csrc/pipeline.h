// Rows of many tensors, read, converted and handed out in order while the next ones are on their way.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "byte_source.h"
#include "quant.h"

namespace phiggml {

// Rows that lie together, and what their file was like when it was opened.
struct RowRun {
    std::shared_ptr<const ByteSource> source;
    ByteStamp stamp;
    std::uint64_t offset;
    std::int64_t n_rows;
    int type;
};

struct PipelineTensor {
    std::string name;
    int type;  // that the rows become
    std::int64_t n_per_row;
    std::vector<RowRun> runs;
    std::vector<float> imatrix;       // float32[experts, n_per_row], or nothing
    std::int64_t rows_of_expert = 0;  // with an imatrix
};

struct PipelineSettings {
    int threads = 1;
    std::uint64_t max_memory = 0;  // bytes of rows on their way
    bool measure_error = false;
};

// Some rows of one tensor, as they were asked for.
struct PipelineChunk {
    std::size_t tensor = 0;
    std::shared_ptr<std::uint8_t> rows;  // memory that goes round: let go of it soon
    std::size_t nbytes = 0;
};

// Seconds that all threads together have spent.
struct PipelineSeconds {
    double reading = 0;
    double converting = 0;
};

class Pipeline {
public:
    // Begins at once. Throws Error: input where a row takes more than max_memory, format where a run reaches beyond its
    // source.
    Pipeline(std::vector<PipelineTensor> tensors, const PipelineSettings & settings);
    ~Pipeline();
    Pipeline(const Pipeline &) = delete;
    Pipeline & operator=(const Pipeline &) = delete;

    // Whether the next chunk is there, or the end is reached, or something failed; waits so long at most.
    bool wait(std::chrono::milliseconds longest);

    // The next chunk, in the order of tensors and rows; nothing at the end. Waits for it. Throws what its thread threw:
    // Error: input where numbers are not finite or too large, format where a source has changed, session where the
    // process ends or was forked off since.
    std::optional<PipelineChunk> next();

    // Stops the threads and waits for them. Closing again does nothing; no chunk comes any more.
    void close();

    // Of each tensor, where they are measured: of the chunks that were handed out. Nothing in a forked child.
    std::vector<QuantizationErrorSums> errors() const;
    PipelineSeconds seconds() const;

private:
    void require_threads() const;

    class Running;
    std::unique_ptr<Running> running_;
    std::uint64_t generation_;
};

}  // namespace phiggml
