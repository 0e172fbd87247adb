// IQ3_XXS and IQ3_S: each sub-block of 32 numbers is eight points of a lattice and their signs, times a scale, which is
// an odd multiple of that of the super-block.
#include "kernels/families.h"
#include "kernels/iq3_search.h"

namespace phiggml::kernels::PHIGGML_ISA {
namespace iq3 {
namespace {

constexpr int sub_blocks = QK_K / width;
constexpr int super_blocks = lanes / sub_blocks;  // of a batch
constexpr int n_signs = width / 8;

// What is to be written of the sub-blocks of a batch.
struct Found {
    float scale[lanes];
    std::int32_t empty[lanes];  // neither points nor signs are written
    std::int32_t for_ggml[lanes];
    std::int32_t places[n_groups][lanes];
    std::int32_t signs[n_signs][lanes];  // a bit for each of eight numbers
};

struct Xxs {
    using Block = block_iq3_xxs;
    static constexpr ggml_type type = GGML_TYPE_IQ3_XXS;
    static constexpr int steps = 15;
    static constexpr float least_magnitude = 1e-8F;  // below which ggml takes a sub-block for zeros
    static constexpr float fudge = 1.0125F;
    static constexpr bool even_signs = true;  // only seven signs are stored, the eighth makes an even number of minuses
    static constexpr bool refines_all = false;  // or only points off the grid
};

struct S {
    using Block = block_iq3_s;
    static constexpr ggml_type type = GGML_TYPE_IQ3_S;
    static constexpr int steps = 9;
    static constexpr float least_magnitude = 0;
    static constexpr float fudge = 1.033F;
    static constexpr bool even_signs = false;
    static constexpr bool refines_all = true;
};

// 2 / QK_K times the sum of squares of each lane's super-block.
PHIGGML_INLINE Floats variances(const float * x) {
    float sums[super_blocks] = {};
    for (int i = 0; i < QK_K; ++i) {
        for (int block = 0; block < super_blocks; ++block) {
            sums[block] += x[block * QK_K + i] * x[block * QK_K + i];
        }
    }
    Floats of_lane;
    for (int lane = 0; lane < lanes; ++lane) {
        of_lane[lane] = 2 * sums[lane / sub_blocks] / QK_K;
    }
    return of_lane;
}

// Takes the signs off eight numbers. If their number is to be even, the number that matters least may keep the wrong
// one.
template <bool even>
PHIGGML_INLINE Ints take_signs(const Floats * x, const Floats * weight, float (*out)[lanes]) {
    Ints signs{}, odd{}, least_at{};
    Floats least_error = weight[0] * x[0] * x[0];
    for (int i = 0; i < 8; ++i) {
        const Ints minus = x[i] < 0;
        signs |= minus & (1 << i);
        odd ^= minus;
        const Floats error = weight[i] * x[i] * x[i];
        const Ints less = error < least_error;
        least_error = select(less, error, least_error);
        least_at = select(less, all(i), least_at);
    }
    for (int i = 0; i < 8; ++i) {
        const Ints flip = even ? Ints(odd & (least_at == i)) : Ints{};
        signs ^= flip & (1 << i);
        store(out[i], select(flip, -magnitude(x[i]), magnitude(x[i])));
    }
    return even ? signs & 127 : signs;
}

// Fills the batch from `lanes` sub-blocks and their importances, if any. Lanes that need no search get a harmless size.
template <typename Type>
PHIGGML_INLINE void prepare(const float * rows, const float * importances, Batch & batch, Found & found) {
    Floats x[width], weight[width];
    transpose<width>(rows, width, x);
    if (importances != nullptr) {
        const Floats sigma2 = variances(rows);
        transpose<width>(importances, width, weight);
        for (int i = 0; i < width; ++i) {
            weight[i] *= square_root(sigma2 + x[i] * x[i]);
        }
    } else {
        for (int i = 0; i < width; ++i) {
            weight[i] = x[i] * x[i];
        }
    }
    for (int i = 0; i < width; ++i) {
        store(batch.weight[i], weight[i]);
        store(batch.root[i], square_root(weight[i]));
    }
    for (int k = 0; k < n_signs; ++k) {
        store(found.signs[k], take_signs<Type::even_signs>(x + 8 * k, weight + 8 * k, batch.x + 8 * k));
    }
    Floats most = load(batch.x[0]), least_x = most;
    for (const auto & numbers : batch.x) {
        most = greatest(most, load(numbers));
        least_x = least(least_x, load(numbers));
    }
    const Ints empty = Type::least_magnitude > 0 ? Ints(most < Type::least_magnitude) : Ints(most == 0);
    // The search needs normal numbers, and so small ones that ggml rounds them as one would think.
    const Ints for_ggml = ~empty & ((most < 1e-30F) | (-least_x > 1e5F * most));
    store(found.empty, empty);
    store(found.for_ggml, for_ggml);
    store(batch.greatest, select(empty | for_ggml, all(1.0F), most));
}

template <typename Type>
void find(const float * rows, const float * importances, const Lists & lists, Found & found) {
    Batch batch;
    Tries tries;
    Choice choice;
    prepare<Type>(rows, importances, batch, found);
    choice.scale = load(batch.greatest) / (2.0F * n_levels - 1);
    const std::int32_t zeros = lists.zeros | (Type::refines_all ? 0 : on_grid);
    for (Ints & words : choice.words) {
        words = all(zeros);
    }
    search(batch, lists, Type::steps, tries, choice);
    const Ints unsafe = refine(batch, lists, Type::refines_all, tries, choice);
    const Ints empty = load(found.empty);
    store(found.for_ggml, ~empty & (load(found.for_ggml) | unsafe));
    store(found.scale, select(empty, Floats{}, choice.scale));
    for (int k = 0; k < n_groups; ++k) {
        store(found.places[k], choice.words[k] >> place_shift & place_mask);
    }
}

// Multiples of the super-block's scale.
PHIGGML_INLINE void round_scales(const float * scales, float inverse, std::int32_t * out) {
    float padded[lanes] = {};
    std::int32_t multiples[lanes];
    std::memcpy(padded, scales, sizeof(float) * sub_blocks);
    const Ints multiple = nearest_int(0.5F * (inverse * load(padded) - 1.0F));
    store(multiples, greatest(all(0), least(all(15), multiple)));
    std::memcpy(out, multiples, sizeof(std::int32_t) * sub_blocks);
}

void write(const Found & found, int lane, const std::int32_t * multiples, block_iq3_xxs & block) {
    for (int i = 0; i < sub_blocks; ++i, ++lane) {
        auto scale_and_signs = static_cast<std::uint32_t>(multiples[i]) << 28;
        for (int k = 0; k < n_groups && !found.empty[lane]; ++k) {
            block.qs[n_groups * i + k] = static_cast<std::uint8_t>(found.places[k][lane]);
        }
        for (int k = 0; k < n_signs && !found.empty[lane]; ++k) {
            scale_and_signs |= static_cast<std::uint32_t>(found.signs[k][lane]) << (7 * k);
        }
        std::memcpy(block.qs + QK_K / 4 + 4 * i, &scale_and_signs, 4);
    }
}

void write(const Found & found, int lane, const std::int32_t * multiples, block_iq3_s & block) {
    std::uint8_t *qs = block.qs, *signs = block.signs;
    for (int i = 0; i < sub_blocks; ++i, ++lane) {
        block.scales[i / 2] |= static_cast<std::uint8_t>(multiples[i] << (4 * (i % 2)));
        if (found.empty[lane]) {
            continue;  // as ggml does, which writes the next sub-block in this one's place, but for the high bits
        }
        for (int k = 0; k < n_groups; ++k) {
            *qs++ = static_cast<std::uint8_t>(found.places[k][lane]);
            block.qh[i] |= static_cast<std::uint8_t>(found.places[k][lane] >> 8 << k);
        }
        for (int k = 0; k < n_signs; ++k) {
            *signs++ = static_cast<std::uint8_t>(found.signs[k][lane]);
        }
    }
}

// Writes the super-block of which the first sub-block is in `lane`; false if it is for ggml.
template <typename Type>
bool write_block(const Found & found, int lane, typename Type::Block & block) {
    float scale = 0;
    for (int i = lane; i < lane + sub_blocks; ++i) {
        if (found.for_ggml[i]) {
            return false;
        }
        scale = scale > found.scale[i] ? scale : found.scale[i];
    }
    std::memset(&block, 0, sizeof block);
    std::int32_t multiples[sub_blocks] = {};
    if (scale > 0) {
        const float unit = scale / 31;
        block.d = to_half(unit * Type::fudge);
        round_scales(found.scale + lane, 1 / unit, multiples);
    } else if (Type::even_signs) {
        return true;  // all of IQ3_XXS is zero then, points and signs of IQ3_S are not
    }
    write(found, lane, multiples, block);
    return true;
}

template <typename Type, bool weighted>
void quantize(const float * x, std::uint8_t * out, std::int64_t n_rows, std::int64_t n_per_row, const float * imatrix) {
    ggml_quantize_init(Type::type);
    const Lists * lists = lists_of(Type::type);
    if (lists == nullptr) {
        quantize_by_ggml(Type::type, x, out, n_rows, n_per_row, imatrix);
        return;
    }
    auto * blocks = reinterpret_cast<typename Type::Block *>(out);
    const std::int64_t n_blocks = n_rows * n_per_row / QK_K;
    for (std::int64_t first = 0; first < n_blocks; first += super_blocks) {
        float rows[super_blocks][QK_K] = {}, importances[super_blocks][QK_K] = {};
        for (std::int64_t j = 0; j < super_blocks && first + j < n_blocks; ++j) {
            std::memcpy(rows[j], x + (first + j) * QK_K, sizeof rows[j]);
            if (weighted) {
                std::memcpy(importances[j], imatrix + (first + j) * QK_K % n_per_row, sizeof importances[j]);
            }
        }
        Found found;
        find<Type>(rows[0], weighted ? importances[0] : nullptr, *lists, found);
        for (int j = 0; j < super_blocks && first + j < n_blocks; ++j) {
            if (!write_block<Type>(found, j * sub_blocks, blocks[first + j])) {
                quantize_by_ggml(Type::type, rows[j], blocks + first + j, 1, QK_K, weighted ? importances[j] : nullptr);
            }
        }
    }
}

}  // namespace
}  // namespace iq3

void add_iq3(Table & table) {
    table.types[GGML_TYPE_IQ3_XXS].quantize = iq3::quantize<iq3::Xxs, false>;
    table.types[GGML_TYPE_IQ3_XXS].quantize_weighted = iq3::quantize<iq3::Xxs, true>;
    table.types[GGML_TYPE_IQ3_S].quantize = iq3::quantize<iq3::S, false>;
    table.types[GGML_TYPE_IQ3_S].quantize_weighted = iq3::quantize<iq3::S, true>;
}

}  // namespace phiggml::kernels::PHIGGML_ISA
