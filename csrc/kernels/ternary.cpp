// TQ1_0 and TQ2_0: the scale is the greatest magnitude of 256 numbers, and the levels are trits of base 3 or 4.
#include "kernels/blockwise.h"
#include "kernels/families.h"

namespace phiggml::kernels::PHIGGML_ISA {

namespace {

PHIGGML_INLINE void load_numbers(const float * from, Floats & to) {
    to = load(from);
}

PHIGGML_INLINE void load_numbers(const float * from, Quad & to) {
    std::memcpy(&to, from, sizeof to);
}

// The digits of n_digits trits that lie `stride` numbers apart as one number of this base, the first one's first.
// Trits begin at -1.
template <class V, int base, int n_digits>
PHIGGML_INLINE V trits(const float * x, std::ptrdiff_t stride, float inverse) {
    V digits{};
    for (int i = 0; i < n_digits; ++i) {
        V numbers;
        load_numbers(x + i * stride, numbers);
        digits = digits * static_cast<float>(base) + nearest_trit(numbers * inverse);
    }
    return digits;
}

// Five digits of base 3 as a fraction of 243, in 256ths rounded up: (256 q + 242) / 243 for q from 0 to 242.
template <class V>
PHIGGML_INLINE V as_fraction(V q) {
    return (q * 17262 + 16200) >> 14;
}

// Five trits in a byte, `step` numbers apart.
template <int step>
PHIGGML_INLINE void store_fives(std::uint8_t * out, const float * x, float inverse) {
    constexpr float ones = 81 + 27 + 9 + 3 + 1;
    for (int i = 0; i < step; i += lanes) {
        store_bytes(out + i, as_fraction(to_int(trits<Floats, 3, 5>(x + i, step, inverse) + ones)));
    }
}

// The last 16 numbers of a block are four trits in a byte, as if a fifth one followed.
PHIGGML_INLINE void store_fours(std::uint8_t * out, const float * x, float inverse) {
    typedef std::int32_t QuadInts __attribute__((vector_size(16)));
    constexpr float ones = 81 + 27 + 9 + 3;
    const Quad digits = trits<Quad, 3, 4>(x, 4, inverse) * 3.0F + ones;
    const QuadInts fractions = as_fraction(__builtin_convertvector(digits, QuadInts));
    for (int i = 0; i < 4; ++i) {
        out[i] = static_cast<std::uint8_t>(fractions[i]);
    }
}

// Where the inverse is infinite, ggml's rounding to a long makes the trit 0 of every number, as an inverse of 0 does.
void quantize_tq1_0(const float * x, std::uint8_t * out) {
    const Floats scale = pick_of_blocks<GreatestMagnitude, QK_K>(x);
    float inverses[lanes];
    store(inverses, finite_inverse(scale));
    std::uint8_t halves[2 * lanes];
    store_halves(halves, scale);
    for (int lane = 0; lane < lanes; ++lane, x += QK_K, out += sizeof(block_tq1_0)) {
        const float inverse = inverses[lane];
        store_fives<32>(out, x, inverse);
        store_fives<16>(out + 32, x + 5 * 32, inverse);
        store_fours(out + offsetof(block_tq1_0, qh), x + 5 * 32 + 5 * 16, inverse);
        std::memcpy(out + offsetof(block_tq1_0, d), halves + 2 * lane, 2);
    }
}

// Four trits in a byte, 32 numbers apart, the last one's bits highest.
void quantize_tq2_0(const float * x, std::uint8_t * out) {
    constexpr float ones = 64 + 16 + 4 + 1;
    const Floats scale = pick_of_blocks<GreatestMagnitude, QK_K>(x);
    float inverses[lanes];
    store(inverses, finite_inverse(scale));
    std::uint8_t halves[2 * lanes];
    store_halves(halves, scale);
    for (int lane = 0; lane < lanes; ++lane, x += QK_K, out += sizeof(block_tq2_0)) {
        for (int i = 0; i < QK_K; i += 4 * 32) {
            for (int j = 0; j < 32; j += lanes) {
                const float * last = x + i + j + 3 * 32;
                store_bytes(out + i / 4 + j, to_int(trits<Floats, 4, 4>(last, -32, inverses[lane]) + ones));
            }
        }
        std::memcpy(out + offsetof(block_tq2_0, d), halves + 2 * lane, 2);
    }
}

}  // namespace

void add_ternary(Table & table) {
    enter(table, GGML_TYPE_TQ1_0, quantize_groups<QK_K, sizeof(block_tq1_0), lanes, quantize_tq1_0>);
    enter(table, GGML_TYPE_TQ2_0, quantize_groups<QK_K, sizeof(block_tq2_0), lanes, quantize_tq2_0>);
}

}  // namespace phiggml::kernels::PHIGGML_ISA
