// What the dequantizers share: packed bytes to lanes, and a walk over blocks.
#pragma once

#include "kernels/blocks.h"
#include "kernels/families.h"

namespace phiggml::kernels::PHIGGML_ISA {

// 0, 1, 2, ...
PHIGGML_INLINE Ints lane_numbers() {
    Ints v;
    for (int lane = 0; lane < lanes; ++lane) {
        v[lane] = lane;
    }
    return v;
}

// The first `lanes` of 16 bytes, one to each lane.
PHIGGML_INLINE Ints widen_unsigned(__m128i bytes) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(bytes));
#else
    return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(bytes));
#endif
}

PHIGGML_INLINE Ints widen_signed(__m128i bytes) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_cvtepi8_epi32(bytes));
#else
    return reinterpret_cast<Ints>(_mm256_cvtepi8_epi32(bytes));
#endif
}

// `lanes` bytes, at any address.
PHIGGML_INLINE __m128i load_bytes(const void * from) {
#if defined(__AVX512F__)
    return _mm_loadu_si128(static_cast<const __m128i *>(from));
#else
    return _mm_loadl_epi64(static_cast<const __m128i *>(from));
#endif
}

PHIGGML_INLINE Ints widen(const std::uint8_t * from) {
    return widen_unsigned(load_bytes(from));
}

PHIGGML_INLINE Ints widen(const std::int8_t * from) {
    return widen_signed(load_bytes(from));
}

// factor * bytes[i], from the low byte up.
PHIGGML_INLINE void scale_bytes(float factor, std::uint64_t bytes, float * out) {
    typedef float EightFloats __attribute__((vector_size(32)));
    const __m128i packed = _mm_cvtsi64_si128(static_cast<long long>(bytes));
    const EightFloats scaled = factor * reinterpret_cast<EightFloats>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(packed)));
    std::memcpy(out, &scaled, sizeof scaled);
}

// The number of each lane, negated where the lane's bit of `signs` is set.
PHIGGML_INLINE Floats negate_where(std::uint32_t signs, Floats v) {
    const Ints at_the_sign = all(static_cast<std::int32_t>(signs)) << (31 - lane_numbers());
    return from_bits(bits(v) ^ (at_the_sign & INT32_MIN));
}

// Sixteen numbers, by an index of four bits; what is above those is ignored.
struct SixteenNumbers {
#if defined(__AVX512F__)
    Floats numbers;

    PHIGGML_INLINE explicit SixteenNumbers(const std::int8_t * from) : numbers(to_float(widen(from))) {}
    PHIGGML_INLINE SixteenNumbers(const SixteenNumbers & other, float factor) : numbers(other.numbers * factor) {}

    PHIGGML_INLINE Floats at(Ints index) const {
        return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), numbers);
    }
#else
    Floats low, high;

    PHIGGML_INLINE explicit SixteenNumbers(const std::int8_t * from)
        : low(to_float(widen(from))), high(to_float(widen(from + 8))) {}
    PHIGGML_INLINE SixteenNumbers(const SixteenNumbers & other, float factor)
        : low(other.low * factor), high(other.high * factor) {}

    PHIGGML_INLINE Floats at(Ints index) const {
        const Floats of_low = _mm256_permutevar8x32_ps(low, reinterpret_cast<__m256i>(index));
        const Floats of_high = _mm256_permutevar8x32_ps(high, reinterpret_cast<__m256i>(index));
        return _mm256_blendv_ps(of_low, of_high, reinterpret_cast<__m256>(index << 28));
    }
#endif
};

// Of 16 bytes the numbers of their low halves, then those of their high ones.
PHIGGML_INLINE void write_sixteen_and_sixteen(const SixteenNumbers & numbers, const std::uint8_t * packed,
                                              float * out) {
    for (int i = 0; i < 16; i += lanes) {
        const Ints levels = widen(packed + i);
        store(out + i, numbers.at(levels));
        store(out + 16 + i, numbers.at(levels >> 4));
    }
}

// Blocks may lie at any address. Their integers of 16 bits may not, so from an odd address a block is copied first.
template <typename Block, std::int64_t block_numbers, void (*dequantize_block)(const Block &, float *)>
void dequantize_blocks(const std::uint8_t * data, float * out, std::int64_t n) {
    const bool in_place = reinterpret_cast<std::uintptr_t>(data) % alignof(Block) == 0;
    for (std::int64_t i = 0; i < n / block_numbers; ++i, data += sizeof(Block), out += block_numbers) {
        Block copy;
        if (!in_place) {
            std::memcpy(&copy, data, sizeof copy);
        }
        dequantize_block(in_place ? *reinterpret_cast<const Block *>(data) : copy, out);
    }
}

}  // namespace phiggml::kernels::PHIGGML_ISA
