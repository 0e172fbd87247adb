#include "llama_kv_cache.h"

#include <algorithm>
#include <cstring>

#include "ggml-backend.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-io.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"

namespace phiggml::upstream {

namespace {

// One number of each token, or one row of them: that of cell c lies c * n_bytes beyond the base.
struct Column {
    ggml_tensor * tensor;
    std::size_t base;
    std::size_t n_bytes;
};

// Tokens, one behind the other, whose cells are so too.
struct Run {
    std::size_t first_token;
    std::uint32_t first_cell;
    std::size_t n_tokens;
};

struct Cache {
    llama_kv_cache * cache;
    std::string layout;
    std::vector<Column> columns;
    std::vector<Run> runs;
};

// Is told by upstream what it would write of a sequence, and from where.
class Recorder : public llama_io_write_i {
public:
    struct Piece {
        ggml_tensor * tensor;
        std::size_t offset;
        std::size_t n_bytes;
    };

    void write(const void * bytes, std::size_t n_bytes) override {
        notes.append(static_cast<const char *>(bytes), n_bytes);
    }

    void write_tensor(ggml_tensor * tensor, std::size_t offset, std::size_t n_bytes) override {
        pieces.push_back({tensor, offset, n_bytes});
    }

    std::size_t n_bytes() override { return notes.size(); }

    std::string notes;
    std::vector<Piece> pieces;
};

// What upstream notes of a sequence, as llama_kv_cache::state_write orders it: the number of streams, and of each the
// number of cells; behind the one that has any, the cells and what a cell's numbers are.
struct Notes {
    std::vector<llama_pos> positions;
    std::string layout;

    explicit Notes(const std::string & notes) {
        std::size_t at = 0;
        const auto next = [&] {
            std::uint32_t value = 0;
            std::memcpy(&value, notes.data() + at, sizeof(value));
            at += sizeof(value);
            return value;
        };
        const std::uint32_t n_streams = next();
        for (std::uint32_t stream = 0; stream < n_streams; ++stream) {
            const std::uint32_t n_cells = next();
            if (n_cells == 0) {
                continue;
            }
            for (std::uint32_t i = 0; i < n_cells; ++i) {
                positions.push_back(static_cast<llama_pos>(next()));
                at += 2 * sizeof(std::uint32_t);  // that it is in one sequence, and in which
            }
            const std::size_t n_behind = (n_streams - stream - 1) * sizeof(std::uint32_t);
            layout = notes.substr(at, notes.size() - n_behind - at);
            break;
        }
    }
};

// Columns from the pieces of each, of which there is one for each run of neighbouring cells.
std::vector<Column> columns_of(const Recorder & recorder, const Notes & notes, const llama_kv_cells & cells,
                               llama_seq_id sequence) {
    std::uint32_t first_cell = 0, last_cell = 0;
    std::size_t n_first = 0, n_runs = 0, n_seen = 0;
    for (std::uint32_t i = 0; i < cells.size() && n_seen < notes.positions.size(); ++i) {
        // Those outside an attention window are passed over.
        if (cells.is_empty(i) || !cells.seq_has(i, sequence) || cells.pos_get(i) != notes.positions[n_seen]) {
            continue;
        }
        if (n_seen == 0) {
            first_cell = i;
        }
        n_runs += n_seen == 0 || i != last_cell + 1 ? 1 : 0;
        n_first += n_runs == 1 ? 1 : 0;
        last_cell = i;
        ++n_seen;
    }
    std::vector<Column> columns;
    for (std::size_t i = 0; i < recorder.pieces.size(); i += n_runs) {
        const Recorder::Piece & piece = recorder.pieces[i];
        const std::size_t n_bytes = piece.n_bytes / n_first;
        columns.push_back({piece.tensor, piece.offset - first_cell * n_bytes, n_bytes});
    }
    return columns;
}

bool place(llama_kv_cache & cache, llama_seq_id sequence, std::size_t n_tokens) {
    cache.seq_rm(sequence, -1, -1);
    if (n_tokens > cache.get_cells(sequence).size()) {
        return false;
    }
    llama_batch_allocr allocator(1);
    llama_ubatch batch = allocator.ubatch_reserve(static_cast<std::uint32_t>(n_tokens), 1);
    batch.seq_id_unq[0] = sequence;
    for (std::size_t i = 0; i < n_tokens; ++i) {
        batch.token[i] = 0;
        batch.pos[i] = static_cast<llama_pos>(i);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i] = &sequence;
    }
    const llama_kv_cache::slot_info slots = cache.find_slot(batch, false);
    if (slots.empty()) {
        return false;
    }
    cache.apply_ubatch(slots, batch);
    return true;
}

bool describe(Cache & described, llama_seq_id sequence) {
    llama_kv_cache & cache = *described.cache;
    // What stands for pictures, or is looked up by the tokens before, is more than numbers.
    if (cache.has_cell_ext()) {
        return false;
    }
    const bool is_empty = cache.seq_pos_max(sequence) < 0;
    if (is_empty && !place(cache, sequence, 1)) {
        return false;
    }
    Recorder recorder;
    cache.state_write(recorder, sequence);
    if (recorder.notes.empty()) {  // the cells are another cache's
        return false;
    }
    const Notes notes(recorder.notes);
    described.layout = notes.layout;
    described.columns = columns_of(recorder, notes, cache.get_cells(sequence), sequence);
    if (is_empty) {
        cache.seq_rm(sequence, -1, -1);
    }
    return true;
}

bool find(Cache & found, llama_seq_id sequence, std::size_t n_tokens) {
    const llama_kv_cells & cells = found.cache->get_cells(sequence);
    constexpr std::uint32_t none = UINT32_MAX;
    std::vector<std::uint32_t> cell_of(n_tokens, none);
    for (std::uint32_t i = 0; i < cells.size(); ++i) {
        if (cells.is_empty(i) || !cells.seq_has(i, sequence)) {
            continue;
        }
        const llama_pos position = cells.pos_get(i);
        if (position < 0 || static_cast<std::size_t>(position) >= n_tokens) {
            return false;
        }
        std::uint32_t & cell = cell_of[static_cast<std::size_t>(position)];
        if (cell != none) {
            return false;
        }
        cell = i;
    }
    found.runs.clear();
    for (std::size_t i = 0; i < n_tokens; ++i) {
        if (cell_of[i] == none) {
            return false;
        }
        if (i > 0 && cell_of[i] == cell_of[i - 1] + 1) {
            ++found.runs.back().n_tokens;
        } else {
            found.runs.push_back({i, cell_of[i], 1});
        }
    }
    return true;
}

}  // namespace

class CachedSequence {
public:
    llama_seq_id sequence = 0;
    std::size_t n_tokens = 0;
    std::vector<Cache> caches;
    std::string layout;
    std::vector<const Cache *> cache_of;  // by the number of a column, as are the two below
    std::vector<Column> columns;
    std::vector<std::uint64_t> ends;  // of the numbers of all tokens

    void turn_to(std::size_t n) {
        n_tokens = n;
        ends.clear();
        std::uint64_t end = 0;
        for (const Column & column : columns) {
            end += static_cast<std::uint64_t>(column.n_bytes) * n;
            ends.push_back(end);
        }
    }

    // Calls take(tensor, offset in it, first byte of the asked ones, number of bytes) for all that are asked for.
    template <typename Take>
    void walk(std::uint64_t offset, std::size_t n_bytes, Take && take) const {
        const std::uint64_t stop = offset + n_bytes;
        auto i = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), offset) - ends.begin());
        for (; i < columns.size(); ++i) {
            const Column & column = columns[i];
            const std::uint64_t begin = ends[i] - static_cast<std::uint64_t>(column.n_bytes) * n_tokens;
            if (begin >= stop) {
                break;
            }
            for (const Run & run : cache_of[i]->runs) {
                const std::uint64_t run_begin = begin + run.first_token * column.n_bytes;
                const std::uint64_t from = std::max(run_begin, offset);
                const std::uint64_t to = std::min(run_begin + run.n_tokens * column.n_bytes, stop);
                if (from < to) {
                    const std::size_t within = column.base + run.first_cell * column.n_bytes + (from - run_begin);
                    take(column.tensor, within, static_cast<std::size_t>(from - offset),
                         static_cast<std::size_t>(to - from));
                }
            }
        }
    }
};

std::shared_ptr<CachedSequence> cached_sequence(llama_context & context, std::int32_t sequence) {
    const auto cached = std::make_shared<CachedSequence>();
    cached->sequence = sequence;
    if (auto * plain = dynamic_cast<llama_kv_cache *>(context.get_memory())) {
        cached->caches.push_back({plain, {}, {}, {}});
    } else if (auto * windowed = dynamic_cast<llama_kv_cache_iswa *>(context.get_memory())) {
        cached->caches.push_back({windowed->get_base(), {}, {}, {}});
        cached->caches.push_back({windowed->get_swa(), {}, {}, {}});
    } else {
        return nullptr;
    }
    context.synchronize();
    context.memory_update(false);  // copies and shifts that upstream puts off until the next decode
    for (Cache & cache : cached->caches) {
        if (!describe(cache, sequence)) {
            return nullptr;
        }
    }
    for (const Cache & cache : cached->caches) {
        cached->layout += cache.layout;
        for (const Column & column : cache.columns) {
            cached->columns.push_back(column);
            cached->cache_of.push_back(&cache);
        }
    }
    return cached;
}

const std::string & cache_layout(const CachedSequence & cached) {
    return cached.layout;
}

std::uint64_t token_bytes(const CachedSequence & cached) {
    std::uint64_t n_bytes = 0;
    for (const Column & column : cached.columns) {
        n_bytes += column.n_bytes;
    }
    return n_bytes;
}

bool has_transposed_values(const CachedSequence & cached) {
    std::uint32_t transposed = 0;
    std::memcpy(&transposed, cached.layout.data(), sizeof(transposed));
    return transposed != 0;
}

bool has_room(const CachedSequence & cached, std::size_t n_tokens) {
    return std::all_of(cached.caches.begin(), cached.caches.end(),
                       [&](const Cache & cache) { return n_tokens <= cache.cache->get_cells(cached.sequence).size(); });
}

bool find_cells(CachedSequence & cached, std::size_t n_tokens) {
    for (Cache & cache : cached.caches) {
        if (!find(cache, cached.sequence, n_tokens)) {
            return false;
        }
    }
    cached.turn_to(n_tokens);
    return true;
}

bool take_cells(CachedSequence & cached, std::size_t n_tokens) {
    bool placed = true;
    for (const Cache & cache : cached.caches) {
        placed = place(*cache.cache, cached.sequence, n_tokens) && placed;
    }
    if (placed && find_cells(cached, n_tokens)) {
        return true;
    }
    for (const Cache & cache : cached.caches) {
        cache.cache->seq_rm(cached.sequence, -1, -1);
    }
    return false;
}

std::vector<CacheSegment> cache_segments(const CachedSequence & cached) {
    std::vector<CacheSegment> segments;
    const ggml_tensor * before = nullptr;
    for (const Column & column : cached.columns) {
        const std::uint64_t n_bytes = static_cast<std::uint64_t>(column.n_bytes) * cached.n_tokens;
        if (column.tensor == before) {
            segments.back().n_bytes += n_bytes;
        } else {
            segments.push_back({column.tensor->type, n_bytes});
        }
        before = column.tensor;
    }
    return segments;
}

void get_numbers(const CachedSequence & cached, std::uint64_t offset, std::uint8_t * out, std::size_t n_bytes) {
    cached.walk(offset, n_bytes, [&](const ggml_tensor * tensor, std::size_t from, std::size_t at, std::size_t n) {
        ggml_backend_tensor_get(tensor, out + at, from, n);
    });
}

void set_numbers(CachedSequence & cached, std::uint64_t offset, const std::uint8_t * numbers, std::size_t n_bytes) {
    cached.walk(offset, n_bytes, [&](ggml_tensor * tensor, std::size_t to, std::size_t at, std::size_t n) {
        ggml_backend_tensor_set(tensor, numbers + at, to, n);
    });
}

}  // namespace phiggml::upstream
