// Pieces that linear layers and attention share: a tile of products of 16-bit numbers, as 8-bit ones would saturate,
// and exact requantization of eight sums.
#pragma once

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "scalar.hpp"

namespace vitquant::kernels {
namespace {

constexpr size_t tile_rows = 6;  // 6 x 2 accumulators, 2 vectors of weights, one of inputs and one of products
constexpr size_t tile_columns = 16;

struct alignas(32) Tile {
    int32_t sum[tile_rows][tile_columns];
};

/// Two accumulators of one row. They are named, not an array: compilers keep arrays in memory.
struct Pair {
    __m256i a, b;
};

inline __attribute__((always_inline)) void accumulate(Pair& sum, const int16_t* x, __m256i w0, __m256i w1) {
    int32_t two;
    __builtin_memcpy(&two, x, 4);
    const __m256i repeated = _mm256_set1_epi32(two);
    sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(repeated, w0));
    sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(repeated, w1));
}

inline __m256i load_words(const int8_t* w) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}
inline __m256i load_words(const int16_t* w) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)); }

inline __attribute__((always_inline)) void keep(int32_t* to, const Pair& sum) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), sum.a);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + 8), sum.b);
}

/// Sums of products of `rows` rows of words and 16 channels of weights, packed in twos, on top of `start`.
///
/// Not inlined, so that nothing else takes part in the contest for registers.
template <int rows, class Weight>
__attribute__((noinline)) void multiply(const int16_t* x, size_t x_stride, const Weight* w, size_t steps,
                                        const int32_t* start, Tile& tile) {
    const Pair first = {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(start)),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + 8))};
    Pair s0 = first, s1 = first, s2 = first, s3 = first, s4 = first, s5 = first;
    for (size_t k = 0; k < steps; ++k, x += 2, w += 32) {
        const __m256i w0 = load_words(w), w1 = load_words(w + 16);
        accumulate(s0, x, w0, w1);
        if constexpr (rows > 1) accumulate(s1, x + x_stride, w0, w1);
        if constexpr (rows > 2) accumulate(s2, x + 2 * x_stride, w0, w1);
        if constexpr (rows > 3) accumulate(s3, x + 3 * x_stride, w0, w1);
        if constexpr (rows > 4) accumulate(s4, x + 4 * x_stride, w0, w1);
        if constexpr (rows > 5) accumulate(s5, x + 5 * x_stride, w0, w1);
    }
    keep(tile.sum[0], s0);
    if constexpr (rows > 1) keep(tile.sum[1], s1);
    if constexpr (rows > 2) keep(tile.sum[2], s2);
    if constexpr (rows > 3) keep(tile.sum[3], s3);
    if constexpr (rows > 4) keep(tile.sum[4], s4);
    if constexpr (rows > 5) keep(tile.sum[5], s5);
}

template <class Weight>
inline void multiply_rows(size_t rows, const int16_t* x, size_t x_stride, const Weight* w, size_t steps,
                          const int32_t* start, Tile& tile) {
    switch (rows) {
        case 1: return multiply<1>(x, x_stride, w, steps, start, tile);
        case 2: return multiply<2>(x, x_stride, w, steps, start, tile);
        case 3: return multiply<3>(x, x_stride, w, steps, start, tile);
        case 4: return multiply<4>(x, x_stride, w, steps, start, tile);
        case 5: return multiply<5>(x, x_stride, w, steps, start, tile);
        default: return multiply<6>(x, x_stride, w, steps, start, tile);
    }
}

/// `floor(x * scale + half)` of four numbers.
///
/// The product has at most 53 bits. Its sum with the half is a multiple of 2^-shift below 2^(53 - shift) + 1/2 and so
/// is exact too, but perhaps between 2^(53 - shift) and that plus 1/2, where rounding it meets no whole number.
inline __m128i rescaled(__m256d x, __m256d scale, __m256d half) {
    return _mm256_cvtpd_epi32(_mm256_floor_pd(_mm256_fmadd_pd(x, scale, half)));
}

/// `rescale(x)` of eight channels, for a narrow requantizer.
inline __m256i rescaled(__m256i x, const double* scale, const double* half) {
    const __m128i low =
        rescaled(_mm256_cvtepi32_pd(_mm256_castsi256_si128(x)), _mm256_loadu_pd(scale), _mm256_loadu_pd(half));
    const __m128i high = rescaled(_mm256_cvtepi32_pd(_mm256_extracti128_si256(x, 1)), _mm256_loadu_pd(scale + 4),
                                  _mm256_loadu_pd(half + 4));
    return _mm256_set_m128i(high, low);
}

inline __m256i load8(const int32_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }

inline __m256i clamped(__m256i x, int32_t low, int32_t high) {
    return _mm256_min_epi32(_mm256_max_epi32(x, _mm256_set1_epi32(low)), _mm256_set1_epi32(high));
}

/// Eight sums to codes.
inline __m256i to_codes(__m256i sums, const Requantizer& r, size_t channel) {
    const __m256i y = rescaled(sums, r.scale + channel, r.start + channel);
    return clamped(_mm256_add_epi32(y, load8(r.zero + channel)), r.low, r.high);
}

/// Sixteen codes of one byte, whether signed or not, to sixteen bytes.
inline __m128i to_bytes(__m256i a, __m256i b) {
    const __m256i low = _mm256_set1_epi32(0xff);
    const __m256i words = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
}

/// `table[code]` of 32 bytes, by a permutation for each sixteen entries: those of other sixteens give 0.
inline __m256i look_up(const uint8_t* table, __m256i codes) {
    __m256i found = _mm256_setzero_si256();
    for (int i = 0; i < 16; ++i) {
        const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i));
        const __m256i within = _mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(16 * i)));
        const __m256i index = _mm256_adds_epu8(within, _mm256_set1_epi8(0x70));  // from 16 on, the highest bit is set
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(part), index));
    }
    return found;
}

inline void store_bytes(uint8_t* out, __m128i bytes, size_t columns) {
    if (columns >= 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    alignas(16) uint8_t all[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
    for (size_t i = 0; i < columns; ++i) out[i] = all[i];
}

}  // namespace
}  // namespace vitquant::kernels
