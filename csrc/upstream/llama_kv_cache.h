// What llama_kv_cache.cpp adds to the llama library: the numbers that a context's cache holds of one sequence, reached
// by the positions of its tokens. Which cells they lie in, and all else that upstream notes of them, stays upstream's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "export.h"

struct llama_context;

namespace phiggml::upstream {

class CachedSequence;

// So many bytes of numbers of one ggml type, one behind the other.
struct CacheSegment {
    int type;
    std::uint64_t n_bytes;
};

// None where the memory is more, or something else, than caches of a cell per token; the sequence stays as it is.
// Nobody else may change it while this lives.
PHIGGML_UPSTREAM_API std::shared_ptr<CachedSequence> cached_sequence(llama_context & context, std::int32_t sequence);

// What a token's numbers are: caches of equal layouts hold them alike.
PHIGGML_UPSTREAM_API const std::string & cache_layout(const CachedSequence & cached);
PHIGGML_UPSTREAM_API std::uint64_t token_bytes(const CachedSequence & cached);
PHIGGML_UPSTREAM_API bool has_transposed_values(const CachedSequence & cached);

// Whether there are cells for so many tokens.
PHIGGML_UPSTREAM_API bool has_room(const CachedSequence & cached, std::size_t n_tokens);

// Turns to the cells of positions 0 to n_tokens - 1; false where the sequence has not exactly these.
PHIGGML_UPSTREAM_API bool find_cells(CachedSequence & cached, std::size_t n_tokens);

// Forgets the sequence and turns to cells for positions 0 to n_tokens - 1, at least one, whose numbers are yet to be
// set; false, with nothing in the sequence, where there is no room.
PHIGGML_UPSTREAM_API bool take_cells(CachedSequence & cached, std::size_t n_tokens);

// Of the cells turned to, in the order of offsets.
PHIGGML_UPSTREAM_API std::vector<CacheSegment> cache_segments(const CachedSequence & cached);

// The bytes from an offset on; all of them must be within the segments.
PHIGGML_UPSTREAM_API void get_numbers(const CachedSequence & cached, std::uint64_t offset, std::uint8_t * out,
                                      std::size_t n_bytes);
PHIGGML_UPSTREAM_API void set_numbers(CachedSequence & cached, std::uint64_t offset, const std::uint8_t * numbers,
                                      std::size_t n_bytes);

}  // namespace phiggml::upstream
