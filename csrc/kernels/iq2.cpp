// IQ2_XXS, IQ2_XS and IQ2_S: one sub-block in each lane for the sums over its numbers, and several scales of one group
// in the lanes for the search of the nearest lattice point.
#include "kernels/blocks.h"
#include "kernels/families.h"
#include "kernels/iq2_batch.h"
#include "kernels/iq2_scale.h"
#include "kernels/iq2_search.h"

namespace phiggml::kernels::PHIGGML_ISA {

namespace iq2 {
namespace {

// What a batch comes to.
struct Found {
    Floats scale;
    Ints codes[max_groups];
};

// What the sub-blocks of `lanes` super-blocks come to.
template <class Type>
struct Tile {
    static constexpr int size = lanes * Type::sub_blocks;
    alignas(64) float scale[size];
    alignas(64) std::int32_t code[Type::groups][size];
    alignas(64) std::int32_t signs[Type::groups][size];
    alignas(64) std::int32_t odd[size];
};

// Where the super-blocks of a tile lie.
struct Place {
    const float * x;
    const float * imatrix;
    alignas(64) std::int32_t column[lanes];  // the first of a super-block, in its row
    alignas(64) float sigma2[lanes];
    int n;
};

template <class Type>
Floats first_scale(Batch & batch) {
    if (Type::type != GGML_TYPE_IQ2_XXS) {
        return batch.max / 5.0F;
    }
    const Floats scale = guess_step(batch);
    batch.alive &= ~(scale * 3.0F <= 0.0F);
    check_scale(batch, scale, batch.alive);
    return scale;
}

template <class Type>
Found best_candidate(Batch & batch, const Neighbours & neighbours, const phiggml_lattice & lattice,
                     Ints (&on_lattice)[Type::groups]) {
    Found best = {first_scale<Type>(batch), {}};
    const Floats range =
        Type::type == GGML_TYPE_IQ2_XXS ? select(batch.alive, best.scale * 3.0F, all(1.0F)) : batch.max;
    Codes codes[Type::n_candidates];
    alignas(64) float scales[max_candidates][lanes];
    for (int c = 0; c < Type::n_candidates; ++c) {
        const Floats inverse_scale = (5.0F + static_cast<float>(c - Type::n_candidates / 2) * 0.1F) / range;
        store(scales[c], 1.0F / inverse_scale);
        round_to_codes<Type>(batch, inverse_scale, codes[c]);
    }
    search_candidates<Type>(batch, neighbours, lattice, scales, codes);
    Floats best_match = all(0.0F);
    for (int k = 0; k < Type::groups; ++k) {
        on_lattice[k] = all(-1);
        best.codes[k] = all(0);
    }
    for (int c = 0; c < Type::n_candidates; ++c) {
        Ints found[Type::groups];
        for (int k = 0; k < Type::groups; ++k) {
            found[k] = load(codes[c].found[k]);
        }
        const Sums sums = sums_of<Type>(batch, found);
        const Ints better = (sums.q2 > 0.0F) & (sums.qx * sums.qx > best_match * sums.q2);
        const Floats scale = sums.qx / sums.q2;
        best.scale = select(better, scale, best.scale);
        best_match = select(better, scale * sums.qx, best_match);
        for (int k = 0; k < Type::groups; ++k) {
            best.codes[k] = select(better, found[k], best.codes[k]);
            on_lattice[k] = select(better, found[k] == load(codes[c].wanted[k]), on_lattice[k]);
        }
    }
    return best;
}

// Searches once more at the scale that the best candidate came to: IQ2_XXS all groups, the others those that are off
// the lattice.
template <class Type>
void search_again(Batch & batch, const Neighbours & neighbours, const phiggml_lattice & lattice,
                  const Ints (&on_lattice)[Type::groups], Found & best) {
    Ints again[Type::groups], any_again = all(0);
    for (int k = 0; k < Type::groups; ++k) {
        again[k] = batch.alive & (best.scale > 0.0F);
        again[k] &= Type::type == GGML_TYPE_IQ2_XXS ? all(-1) : ~on_lattice[k];
        any_again |= again[k];
    }
    check_scale(batch, best.scale, any_again);
    Codes codes;
    round_to_codes<Type>(batch, 1.0F / best.scale, codes);
    for (int k = 0; k < Type::groups; ++k) {
        search_lanes(batch, neighbours, k, best.scale, codes);
        codes.unsure[k] &= again[k];
    }
    alignas(64) float scale[lanes];
    store(scale, best.scale);
    search_unsure<Type>(lattice, batch, scale, codes);
    Ints found[Type::groups];
    for (int k = 0; k < Type::groups; ++k) {
        found[k] = best.codes[k] = select(again[k], load(codes.found[k]), best.codes[k]);
    }
    const Sums sums = sums_of<Type>(batch, found);
    best.scale = select(any_again & (sums.q2 > 0.0F), sums.qx / sums.q2, best.scale);
}

template <class Type>
void quantize_batch(const Place & place, const Neighbours & neighbours, const phiggml_lattice & lattice, int first,
                    Tile<Type> & tile) {
    const int last = place.n * Type::sub_blocks - 1;
    Ints index;
    for (int lane = 0; lane < lanes; ++lane) {
        index[lane] = first + lane;
    }
    index = least(index, all(last));
    const Ints super_block = index / Type::sub_blocks;
    const Ints column = gather(place.column, super_block) + index % Type::sub_blocks * Type::numbers;
    Batch batch;
    read_batch<Type>(place.x, index * Type::numbers, place.imatrix, column, gather(place.sigma2, super_block), batch);
    Ints on_lattice[Type::groups];
    Found found = best_candidate<Type>(batch, neighbours, lattice, on_lattice);
    search_again<Type>(batch, neighbours, lattice, on_lattice, found);
    const Ints negative = found.scale < 0.0F;
    for (int k = 0; k < Type::groups; ++k) {
        const Ints signs = select(negative, ~batch.signs[k] & (Type::even_signs ? 127 : 255), batch.signs[k]);
        store(tile.signs[k] + first, signs & batch.alive);
        store(tile.code[k] + first, found.codes[k] & batch.alive);
    }
    store(tile.scale + first, select(batch.alive, magnitude(found.scale), all(0.0F)));
    store(tile.odd + first, batch.odd);
}

// Writes the scales of the sub-blocks as multiples 2l + 1 of their super-block's, which it returns.
template <class Type>
float write_levels(const float * scales, float max, std::uint8_t * levels) {
    const float step = max / 31.0F;
    const float inverse_step = 1.0F / step;
    alignas(64) std::int32_t written[lanes];
    for (int j = 0; j < Type::sub_blocks; j += lanes) {
        const int n = Type::sub_blocks < lanes ? Type::sub_blocks : lanes;
        Floats scale = all(0.0F);
        std::memcpy(&scale, scales + j, static_cast<std::size_t>(n) * sizeof(float));
        const Ints level = nearest_int(0.5F * (inverse_step * scale - 1.0F));
        store(written, greatest(all(0), least(all(15), level)));
        for (int i = 0; i < n; ++i) {
            levels[j + i] = static_cast<std::uint8_t>(written[i]);
        }
    }
    return step;
}

template <class Type>
float greatest_scale(const float * scales) {
    float max = 0;
    for (int j = 0; j < Type::sub_blocks; ++j) {
        max = max > scales[j] ? max : scales[j];
    }
    return max;
}

void write_block(const Tile<Xxs> & tile, int first, const int * map, block_iq2_xxs & block) {
    std::memset(&block, 0, sizeof block);
    const float max = greatest_scale<Xxs>(tile.scale + first);
    if (max == 0.0F) {
        return;
    }
    std::uint8_t levels[Xxs::sub_blocks];
    block.d = to_half(write_levels<Xxs>(tile.scale + first, max, levels));
    std::uint32_t words[2 * Xxs::sub_blocks] = {};
    for (int j = 0; j < Xxs::sub_blocks; ++j) {
        words[2 * j + 1] = static_cast<std::uint32_t>(levels[j]) << 28;
        for (int k = 0; k < Xxs::groups; ++k) {
            words[2 * j] |= static_cast<std::uint32_t>(map[tile.code[k][first + j]]) << 8 * k;
            words[2 * j + 1] |= static_cast<std::uint32_t>(tile.signs[k][first + j]) << 7 * k;
        }
    }
    std::memcpy(block.qs, words, sizeof words);
}

// Two sub-blocks' levels in a byte.
void write_scales(const std::uint8_t * levels, std::uint8_t * scales) {
    for (int j = 0; j < QK_K / 32; ++j) {
        scales[j] = static_cast<std::uint8_t>(levels[2 * j] | levels[2 * j + 1] << 4);
    }
}

void write_block(const Tile<Xs> & tile, int first, const int * map, block_iq2_xs & block) {
    std::memset(&block, 0, sizeof block);
    const float max = greatest_scale<Xs>(tile.scale + first);
    if (max == 0.0F) {
        return;
    }
    std::uint8_t levels[Xs::sub_blocks];
    block.d = to_half(write_levels<Xs>(tile.scale + first, max, levels));
    write_scales(levels, block.scales);
    for (int j = 0; j < Xs::sub_blocks; ++j) {
        for (int k = 0; k < Xs::groups; ++k) {
            const std::int32_t signs = tile.signs[k][first + j];
            block.qs[2 * j + k] = static_cast<std::uint16_t>(map[tile.code[k][first + j]] | signs << 9);
        }
    }
}

void write_block(const Tile<S> & tile, int first, const int * map, block_iq2_s & block) {
    std::memset(&block, 0, sizeof block);
    for (int j = 0; j < S::sub_blocks; ++j) {
        for (int k = 0; k < S::groups; ++k) {
            const int group = 2 * j + k, index = map[tile.code[k][first + j]];
            block.qs[group] = static_cast<std::uint8_t>(index & 255);
            block.qh[group / 4] |= static_cast<std::uint8_t>(index >> 8 << 2 * (group % 4));
            block.qs[QK_K / 8 + group] = static_cast<std::uint8_t>(tile.signs[k][first + j]);
        }
    }
    const float max = greatest_scale<S>(tile.scale + first);
    if (max == 0.0F) {
        return;
    }
    std::uint8_t levels[S::sub_blocks];
    block.d = to_half(write_levels<S>(tile.scale + first, max, levels) * 0.9875F);
    write_scales(levels, block.scales);
}

template <class Type>
void find_sigma2(Place & place) {
    Ints index;
    for (int lane = 0; lane < lanes; ++lane) {
        index[lane] = lane < place.n ? lane : place.n - 1;
    }
    Floats sum = all(0.0F);
    for (int i = 0; i < QK_K; ++i) {
        const Floats x = gather(place.x + i, index * QK_K);
        sum += x * x;
    }
    store(place.sigma2, (Type::type == GGML_TYPE_IQ2_S ? 2.0F * sum : sum) / 256.0F);
}

template <class Type>
bool any_odd(const Tile<Type> & tile, int first) {
    std::int32_t odd = 0;
    for (int j = 0; j < Type::sub_blocks; ++j) {
        odd |= tile.odd[first + j];
    }
    return odd != 0;
}

template <class Type, class Block>
void quantize_tile(const Place & place, const Neighbours & neighbours, const phiggml_lattice & lattice, Block * out) {
    Tile<Type> tile;
    for (int first = 0; first < place.n * Type::sub_blocks; first += lanes) {
        quantize_batch<Type>(place, neighbours, lattice, first, tile);
    }
    for (int j = 0; j < place.n; ++j) {
        if (any_odd(tile, j * Type::sub_blocks)) {
            const float * imatrix = place.imatrix == nullptr ? nullptr : place.imatrix + place.column[j];
            quantize_by_ggml(Type::type, place.x + j * QK_K, out + j, 1, QK_K, imatrix);
        } else {
            write_block(tile, j * Type::sub_blocks, lattice.map, out[j]);
        }
    }
}

template <class Type, class Block>
void quantize(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row, const float * imatrix) {
    ggml_quantize_init(Type::type);
    const phiggml_lattice lattice = phiggml_lattice_of(Type::type);
    static const Neighbours * kept = nullptr;
    const Neighbours * neighbours = made_once(kept, [&] { return make_neighbours<8, 2, 3>(lattice); });
    if (neighbours == nullptr) {
        quantize_by_ggml(Type::type, x, out, n_rows, n_per_row, imatrix);
        return;
    }
    auto * blocks = reinterpret_cast<Block *>(out);
    const std::int64_t n = n_rows * n_per_row / QK_K;
    std::int64_t column = 0;
    for (std::int64_t first = 0; first < n; first += lanes) {
        Place place;
        place.x = x + first * QK_K;
        place.imatrix = imatrix;
        place.n = static_cast<int>(n - first < lanes ? n - first : lanes);
        for (int j = 0; j < lanes; ++j) {
            place.column[j] = static_cast<std::int32_t>(column);
            column = column + QK_K == n_per_row ? 0 : column + QK_K;
        }
        find_sigma2<Type>(place);
        quantize_tile<Type>(place, *neighbours, lattice, blocks + first);
    }
}

}  // namespace
}  // namespace iq2

void add_iq2(Table & table) {
    table.types[GGML_TYPE_IQ2_XXS].quantize_weighted = iq2::quantize<iq2::Xxs, block_iq2_xxs>;
    table.types[GGML_TYPE_IQ2_XS].quantize_weighted = iq2::quantize<iq2::Xs, block_iq2_xs>;
    table.types[GGML_TYPE_IQ2_S].quantize = iq2::quantize<iq2::S, block_iq2_s>;
    table.types[GGML_TYPE_IQ2_S].quantize_weighted = iq2::quantize<iq2::S, block_iq2_s>;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
