#include "ggml_cpu_flash_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "common.h"
#include "ops.h"
#include "vec.h"

namespace phiggml::upstream {

namespace {

constexpr int block_keys = 32;       // keys that are widened to float32 at a time: keys and values stay in L1
constexpr int tile_rows = 8;         // heads that share a key's head, of one query or several, answered together
constexpr int64_t chunk_keys = 256;  // the least that is worth a partial result
constexpr int64_t keys_ahead = 16;   // are on their way into the cache
constexpr int64_t cache_line = 64;
constexpr int lanes = 16;  // independent sums, which compilers turn into vectors

// The part of one head's answer that some of the keys give: weights relative to the largest score.
struct Partial {
    float max;
    float sum;
    float * values;  // [dv], not divided by sum
};

struct Attention {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    ggml_tensor * dst;
    int64_t dk, dv;
    int64_t n_key, n_query, n_head, n_batch;
    int64_t shared;           // heads in a row that see the same keys, values and mask
    int64_t tiles_of_shared;  // pieces of tile_rows that those make
    int64_t tile_queries;     // queries of a tile
    int64_t n_tile, n_chunk, chunk;
    float scale, max_bias, softcap;
};

// Heads of some queries against one chunk of the keys: what one thread does at a time. A row is one head of one query;
// those of a query follow each other.
struct Tile {
    int64_t batch, query, n_query, head, n_head, begin, end;

    int64_t n_row() const { return n_query * n_head; }
    int64_t query_of(int64_t row) const { return query + row / n_head; }
    int64_t head_of(int64_t row) const { return head + row % n_head; }
};

// One thread's memory.
struct Scratch {
    float * queries;  // [tile_rows, dk], scaled
    float * keys;     // [block_keys, dk]
    float * values;   // [block_keys, dv]
    float * scores;   // [tile_rows, block_keys]
    float * answers;  // [tile_rows, dv]
};

// Keys that the mask lets one query of a tile see at least.
struct Block {
    int64_t keys[block_keys];
    float bias[tile_rows][block_keys];  // of each query; -inf where it does not see the key
    int n;
};

const char * row_of(const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    return static_cast<const char *>(t->data) + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
}

int64_t scratch_floats(int64_t dk, int64_t dv) {
    const int64_t n = (tile_rows + block_keys) * (dk + dv) + tile_rows * block_keys;
    return (n + lanes - 1) / lanes * lanes;
}

// What ggml_graph_plan gives for the op to each thread; the number of chunks must not depend on how many there are.
int64_t planned_floats(int64_t dk, int64_t dv) {
    return (GGML_FA_TILE_Q + GGML_FA_TILE_KV) * (dk + dv) + 2 * GGML_FA_TILE_Q * GGML_FA_TILE_KV;
}

bool upstream_tiles(const Attention & a) {
    if (a.n_query < GGML_FA_TILE_Q) {
        return false;
    }
#if defined(GGML_SIMD) && defined(__ARM_FEATURE_SVE)
    return a.dv % static_cast<int64_t>(svcntw()) == 0;
#elif defined(GGML_SIMD) && !defined(__x86_64__) && !defined(_M_X64)
    return a.dv % GGML_F32_EPR == 0;
#else
    return true;
#endif
}

int64_t tiles_of_queries(const Attention & a) {
    return (a.n_query + a.tile_queries - 1) / a.tile_queries;
}

Attention read_attention(ggml_tensor * dst) {
    Attention a = {};
    a.q = dst->src[0];
    a.k = dst->src[1];
    a.v = dst->src[2];
    a.mask = dst->src[3];
    a.sinks = dst->src[4];
    a.dst = dst;
    a.dk = a.k->ne[0];
    a.dv = a.v->ne[0];
    a.n_key = a.k->ne[1];
    a.n_query = a.q->ne[1];
    a.n_head = a.q->ne[2];
    a.n_batch = a.q->ne[3];
    float parameters[3];
    std::memcpy(parameters, dst->op_params, sizeof(parameters));
    a.softcap = parameters[2];
    a.scale = a.softcap == 0.0f ? parameters[0] : parameters[0] / a.softcap;
    a.max_bias = parameters[1];
    const bool same_keys = a.k->ne[2] == a.v->ne[2] && (a.mask == nullptr || a.mask->ne[2] == 1);
    a.shared = same_keys ? a.n_head / a.k->ne[2] : 1;
    a.tiles_of_shared = (a.shared + tile_rows - 1) / tile_rows;
    a.tile_queries = std::max<int64_t>(1, tile_rows / a.shared);
    a.n_tile = a.n_batch * tiles_of_queries(a) * (a.n_head / a.shared) * a.tiles_of_shared;
    return a;
}

bool is_ours(const Attention & a) {
    const bool types = a.q->type == GGML_TYPE_F32 && a.k->type == GGML_TYPE_F16 && a.v->type == GGML_TYPE_F16 &&
                       a.dst->type == GGML_TYPE_F32 && (a.mask == nullptr || a.mask->type == GGML_TYPE_F16);
    const bool rows = a.q->nb[0] == sizeof(float) && a.k->nb[0] == sizeof(ggml_fp16_t) &&
                      a.v->nb[0] == sizeof(ggml_fp16_t) && ggml_is_contiguous(a.dst);
    const bool heads = a.q->ne[0] == a.dk && a.n_head % a.k->ne[2] == 0 && a.n_head % a.v->ne[2] == 0 &&
                       a.n_batch % a.k->ne[3] == 0 && a.n_batch % a.v->ne[3] == 0 && a.v->ne[1] == a.n_key;
    const int32_t precision = a.dst->op_params[3];
    return types && rows && heads && (precision == GGML_PREC_DEFAULT || precision == GGML_PREC_F32) &&
           !upstream_tiles(a);
}

void divide_keys(Attention & a) {
    const int64_t spare = planned_floats(a.dk, a.dv) - scratch_floats(a.dk, a.dv);
    const int64_t partial = a.n_batch * a.n_query * a.n_head * (a.dv + 2);
    const int64_t wanted = std::min((a.n_key + chunk_keys - 1) / chunk_keys, spare / partial);
    a.n_chunk = std::max<int64_t>(1, wanted);
    a.chunk = (a.n_key + a.n_chunk - 1) / a.n_chunk;
}

Tile tile_at(const Attention & a, int64_t unit) {
    Tile t = {};
    t.begin = std::min(a.n_key, unit % a.n_chunk * a.chunk);
    t.end = std::min(a.n_key, t.begin + a.chunk);
    int64_t rest = unit / a.n_chunk;
    const int64_t piece = rest % a.tiles_of_shared * tile_rows;
    rest /= a.tiles_of_shared;
    const int64_t n_share = a.n_head / a.shared;
    t.head = rest % n_share * a.shared + piece;
    t.n_head = std::min<int64_t>(tile_rows, a.shared - piece);
    rest /= n_share;
    t.query = rest % tiles_of_queries(a) * a.tile_queries;
    t.n_query = std::min(a.tile_queries, a.n_query - t.query);
    t.batch = rest / tiles_of_queries(a);
    return t;
}

float slope_of(const Attention & a, int64_t head) {
    if (a.max_bias <= 0.0f) {
        return 1.0f;
    }
    const int64_t power = int64_t{1} << static_cast<int>(std::floor(std::log2(static_cast<double>(a.n_head))));
    const float step = a.max_bias / static_cast<float>(power);
    return head < power ? std::exp2(-step * static_cast<float>(head + 1))
                        : std::exp2(-0.5f * step * static_cast<float>(2 * (head - power) + 1));
}

using Masks = std::array<const ggml_fp16_t *, tile_rows>;  // of the queries of a tile; null where all keys are seen

Masks masks_of(const Attention & a, const Tile & t) {
    Masks masks = {};
    for (int64_t q = 0; a.mask != nullptr && q < t.n_query; q++) {
        masks[q] = reinterpret_cast<const ggml_fp16_t *>(
            row_of(a.mask, t.query + q, t.head % a.mask->ne[2], t.batch % a.mask->ne[3]));
    }
    return masks;
}

// Reads on from `key` to the next keys that are not masked; what no query sees is never looked at, whatever it holds.
int64_t next_block(Block & block, const Tile & t, const Masks & masks, int64_t key) {
    block.n = 0;
    for (; key < t.end && block.n < block_keys; key++) {
        bool seen = false;
        for (int64_t q = 0; q < t.n_query; q++) {
            const float bias = masks[q] != nullptr ? GGML_CPU_FP16_TO_FP32(masks[q][key]) : 0.0f;
            block.bias[q][block.n] = bias;
            seen = seen || bias != -INFINITY;
        }
        if (seen) {
            block.keys[block.n++] = key;
        }
    }
    return key;
}

// The products of `a` with rows [n_row, n] of `b`. Several at a time: a sum waits for its own last addition.
template <int n_row>
void dots(const float * a, const float * b, int64_t n, float * out) {
    float sums[n_row][lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int row = 0; row < n_row; row++) {
            for (int l = 0; l < lanes; l++) {
                sums[row][l] += a[i + l] * b[row * n + i + l];
            }
        }
    }
    for (int l = 0; i < n; i++, l++) {
        for (int row = 0; row < n_row; row++) {
            sums[row][l] += a[i] * b[row * n + i];
        }
    }
    for (int row = 0; row < n_row; row++) {
        for (int width = lanes / 2; width > 0; width /= 2) {
            for (int l = 0; l < width; l++) {
                sums[row][l] += sums[row][l + width];
            }
        }
        out[row] = sums[row][0];
    }
}

// Adds to sum[n] the rows of values[n_row, n], each by its weight.
void add_weighted(float * sum, const float * values, const float * weights, int n_row, int64_t n) {
    int64_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
        float part[2 * lanes];
        std::memcpy(part, sum + i, sizeof(part));
        for (int row = 0; row < n_row; row++) {
            const float * value = values + row * n + i;
            for (int l = 0; l < 2 * lanes; l++) {
                part[l] += weights[row] * value[l];
            }
        }
        std::memcpy(sum + i, part, sizeof(part));
    }
    for (int row = 0; row < n_row; row++) {
        for (int64_t rest = i; rest < n; rest++) {
            sum[rest] += weights[row] * values[row * n + rest];
        }
    }
}

// Brings `partial` to a new largest score.
void raise(Partial & partial, float max, int64_t dv) {
    if (max > partial.max) {
        const float factor = std::exp(partial.max - max);
        ggml_vec_scale_f32(static_cast<int>(dv), partial.values, factor);
        partial.sum *= factor;
        partial.max = max;
    }
}

// Rows of one head lie far apart in memory, often in pages of their own, where processors do not read ahead themselves.
void fetch(const char * row, int64_t n_bytes) {
#if defined(__GNUC__)
    for (int64_t i = 0; i < n_bytes; i += cache_line) {
        __builtin_prefetch(row + i);
    }
#else
    static_cast<void>(row), static_cast<void>(n_bytes);
#endif
}

void widen(const Attention & a, const Tile & t, const Block & block, const Scratch & s) {
    const int64_t k2 = t.head / (a.n_head / a.k->ne[2]), k3 = t.batch / (a.n_batch / a.k->ne[3]);
    const int64_t v2 = t.head / (a.n_head / a.v->ne[2]), v3 = t.batch / (a.n_batch / a.v->ne[3]);
    for (int i = 0; i < block.n; i++) {
        const char * key = row_of(a.k, block.keys[i], k2, k3);
        const char * value = row_of(a.v, block.keys[i], v2, v3);
        fetch(key + keys_ahead * a.k->nb[1], a.dk * sizeof(ggml_fp16_t));
        fetch(value + keys_ahead * a.v->nb[1], a.dv * sizeof(ggml_fp16_t));
        ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(key), s.keys + i * a.dk, a.dk);
        ggml_cpu_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(value), s.values + i * a.dv, a.dv);
    }
}

// The block's scores for one query, in logits.
void score(const Attention & a, const Block & block, const float * bias, const float * query, float slope,
           const float * keys, float * scores) {
    constexpr int together = 8;
    int first = 0;
    for (; first + together <= block.n; first += together) {
        dots<together>(query, keys + first * a.dk, a.dk, scores + first);
    }
    for (; first < block.n; first++) {
        dots<1>(query, keys + first * a.dk, a.dk, scores + first);
    }
    if (a.softcap != 0.0f) {
        for (int i = 0; i < block.n; i++) {
            scores[i] = a.softcap * std::tanh(scores[i]);
        }
    }
    for (int i = 0; i < block.n; i++) {
        scores[i] += slope * bias[i];
    }
}

void attend(const Attention & a, const Tile & t, const Scratch & s, Partial * partials) {
    float slopes[tile_rows];
    for (int64_t row = 0; row < t.n_row(); row++) {
        const auto * query = reinterpret_cast<const float *>(row_of(a.q, t.query_of(row), t.head_of(row), t.batch));
        for (int64_t i = 0; i < a.dk; i++) {
            s.queries[row * a.dk + i] = query[i] * a.scale;
        }
        slopes[row] = slope_of(a, t.head_of(row));
        partials[row] = {-INFINITY, 0.0f, s.answers + row * a.dv};
        std::memset(partials[row].values, 0, a.dv * sizeof(float));
    }
    const Masks masks = masks_of(a, t);
    Block block;
    for (int64_t key = t.begin; (key = next_block(block, t, masks, key)), block.n > 0;) {
        widen(a, t, block, s);
        for (int64_t row = 0; row < t.n_row(); row++) {
            Partial & partial = partials[row];
            float * scores = s.scores + row * block_keys;
            const float * bias = block.bias[t.query_of(row) - t.query];
            score(a, block, bias, s.queries + row * a.dk, slopes[row], s.keys, scores);
            raise(partial, *std::max_element(scores, scores + block.n), a.dv);
            if (partial.max != -INFINITY) {
                partial.sum += static_cast<float>(ggml_vec_soft_max_f32(block.n, scores, scores, partial.max));
                add_weighted(partial.values, s.values, scores, block.n, a.dv);
            }
        }
    }
}

// Adds the head's sink, a key without a value, and writes the answer.
void finish(const Attention & a, int64_t row, Partial & partial) {
    const int64_t head = row % a.n_head;
    if (a.sinks != nullptr) {
        const float sink = static_cast<const float *>(a.sinks->data)[head];
        raise(partial, sink, a.dv);
        partial.sum += std::exp(sink - partial.max);
    }
    const float factor = partial.sum == 0.0f ? 0.0f : 1.0f / partial.sum;
    float * answer = static_cast<float *>(a.dst->data) + row * a.dv;
    for (int64_t i = 0; i < a.dv; i++) {
        answer[i] = partial.values[i] * factor;
    }
}

void join(const Attention & a, int64_t row, const float * stored, float * values) {
    Partial whole = {-INFINITY, 0.0f, values};
    std::memset(values, 0, a.dv * sizeof(float));
    for (int64_t c = 0; c < a.n_chunk; c++, stored += a.dv + 2) {
        if (stored[1] != 0.0f) {
            raise(whole, stored[0], a.dv);
            const float factor = std::exp(stored[0] - whole.max);
            whole.sum += stored[1] * factor;
            ggml_vec_mad_f32(static_cast<int>(a.dv), values, stored + 2, factor);
        }
    }
    finish(a, row, whole);
}

Scratch scratch_at(const Attention & a, float * base) {
    Scratch s = {};
    s.queries = base;
    s.keys = s.queries + tile_rows * a.dk;
    s.values = s.keys + block_keys * a.dk;
    s.answers = s.values + block_keys * a.dv;
    s.scores = s.answers + tile_rows * a.dv;
    return s;
}

}  // namespace

bool flash_attention(const ggml_compute_params * params, ggml_tensor * dst) {
    Attention a = read_attention(dst);
    if (params->use_ref || !is_ours(a)) {
        return false;
    }
    divide_keys(a);
    const int64_t n_row = a.n_batch * a.n_query * a.n_head;
    const int64_t n_stored = a.n_chunk > 1 ? n_row * a.n_chunk * (a.dv + 2) : 0;
    const int64_t own = scratch_floats(a.dk, a.dv);
    if (params->wsize / sizeof(float) < static_cast<size_t>(own * params->nth + n_stored)) {
        return false;
    }
    float * stored = static_cast<float *>(params->wdata) + own * params->nth;
    const Scratch scratch = scratch_at(a, static_cast<float *>(params->wdata) + own * params->ith);
    const int64_t n_unit = a.n_tile * a.n_chunk;
    Partial partials[tile_rows];
    for (int64_t u = n_unit * params->ith / params->nth; u < n_unit * (params->ith + 1) / params->nth; u++) {
        const Tile t = tile_at(a, u);
        attend(a, t, scratch, partials);
        for (int64_t i = 0; i < t.n_row(); i++) {
            const int64_t row = (t.batch * a.n_query + t.query_of(i)) * a.n_head + t.head_of(i);
            if (a.n_chunk == 1) {
                finish(a, row, partials[i]);
                continue;
            }
            float * place = stored + (row * a.n_chunk + u % a.n_chunk) * (a.dv + 2);
            place[0] = partials[i].max;
            place[1] = partials[i].sum;
            std::memcpy(place + 2, partials[i].values, a.dv * sizeof(float));
        }
    }
    if (a.n_chunk > 1) {
        ggml_barrier(params->threadpool);
        for (int64_t row = params->ith; row < n_row; row += params->nth) {
            join(a, row, stored + row * a.n_chunk * (a.dv + 2), scratch.answers);
        }
    }
    return true;
}

}  // namespace phiggml::upstream
