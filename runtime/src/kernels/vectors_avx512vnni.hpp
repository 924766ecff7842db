// Pieces that linear layers and attention share: a tile of products, and exact requantization of sixteen sums.
#pragma once

// GCC's own headers start vectors from nothing on purpose, and GCC warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "scalar.hpp"

namespace vitquant::kernels {
namespace {

constexpr size_t tile_rows = 6;  // 6 x 4 accumulators, 4 vectors of weights and one of inputs fill 32 registers

template <int rows>
struct alignas(64) Tile {
    __m512i sum[rows][4];
};

/// Four accumulators of one row. They are named, not an array: compilers keep arrays in memory.
struct Quad {
    __m512i a, b, c, d;
};

template <int vectors>
inline __attribute__((always_inline)) void accumulate(Quad& sum, const uint8_t* x, __m512i w0, __m512i w1, __m512i w2,
                                                      __m512i w3) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    const __m512i repeated = _mm512_set1_epi32(four);
    sum.a = _mm512_dpbusd_epi32(sum.a, repeated, w0);
    if constexpr (vectors > 1) sum.b = _mm512_dpbusd_epi32(sum.b, repeated, w1);
    if constexpr (vectors > 2) sum.c = _mm512_dpbusd_epi32(sum.c, repeated, w2);
    if constexpr (vectors > 3) sum.d = _mm512_dpbusd_epi32(sum.d, repeated, w3);
}

inline __attribute__((always_inline)) void keep(__m512i* to, const Quad& sum) {
    _mm512_store_si512(to, sum.a);
    _mm512_store_si512(to + 1, sum.b);
    _mm512_store_si512(to + 2, sum.c);
    _mm512_store_si512(to + 3, sum.d);
}

/// Sums of products of `rows` rows of bytes (unsigned) and a block of packed weights, on top of `start`; of the block's
/// 64 channels, only the first 16 * `vectors` are computed.
///
/// Not inlined, so that nothing else takes part in the contest for registers.
template <int rows, int vectors>
__attribute__((noinline)) void multiply(const uint8_t* x, size_t x_stride, const int8_t* w, size_t steps,
                                        const int32_t* start, Tile<rows>& tile) {
    const Quad first = {_mm512_load_si512(start), _mm512_load_si512(start + 16), _mm512_load_si512(start + 32),
                        _mm512_load_si512(start + 48)};
    Quad s0 = first, s1 = first, s2 = first, s3 = first, s4 = first, s5 = first;
    for (size_t k = 0; k < steps; ++k, x += 4, w += 256) {
        const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
        const __m512i w2 = _mm512_load_si512(w + 128), w3 = _mm512_load_si512(w + 192);
        accumulate<vectors>(s0, x, w0, w1, w2, w3);
        if constexpr (rows > 1) accumulate<vectors>(s1, x + x_stride, w0, w1, w2, w3);
        if constexpr (rows > 2) accumulate<vectors>(s2, x + 2 * x_stride, w0, w1, w2, w3);
        if constexpr (rows > 3) accumulate<vectors>(s3, x + 3 * x_stride, w0, w1, w2, w3);
        if constexpr (rows > 4) accumulate<vectors>(s4, x + 4 * x_stride, w0, w1, w2, w3);
        if constexpr (rows > 5) accumulate<vectors>(s5, x + 5 * x_stride, w0, w1, w2, w3);
    }
    keep(tile.sum[0], s0);
    if constexpr (rows > 1) keep(tile.sum[1], s1);
    if constexpr (rows > 2) keep(tile.sum[2], s2);
    if constexpr (rows > 3) keep(tile.sum[3], s3);
    if constexpr (rows > 4) keep(tile.sum[4], s4);
    if constexpr (rows > 5) keep(tile.sum[5], s5);
}

template <int rows>
inline void multiply_columns(const uint8_t* x, size_t x_stride, const int8_t* w, size_t steps, const int32_t* start,
                             size_t columns, Tile<rows>& tile) {
    if (columns > 48) return multiply<rows, 4>(x, x_stride, w, steps, start, tile);
    if (columns > 32) return multiply<rows, 3>(x, x_stride, w, steps, start, tile);
    if (columns > 16) return multiply<rows, 2>(x, x_stride, w, steps, start, tile);
    multiply<rows, 1>(x, x_stride, w, steps, start, tile);
}

/// Scale and start of sixteen channels, in the order in which halves of a vector are interleaved.
struct Affine {
    __m512d scale_low, scale_high, start_low, start_high;
};

inline Affine load_affine(const Requantizer& r, size_t channel) {
    return {_mm512_load_pd(r.scale + channel), _mm512_load_pd(r.scale + channel + 8), _mm512_load_pd(r.start + channel),
            _mm512_load_pd(r.start + channel + 8)};
}

inline Affine same_affine(double scale, double start) {
    const __m512d a = _mm512_set1_pd(scale), b = _mm512_set1_pd(start);
    return {a, a, b, b};
}

/// Twice `zero + rescale(x)`, or one more, of `flipped` = x xor 2^31, for a narrow requantizer.
///
/// x becomes the double 2^52 + 2^31 + x by its bits, from which x is exact. One fused multiplication rounds only once,
/// downwards, to halves: those are all that 1.5 * 2^51 leaves room for. So `floor(x * scale + 1/2)` is the result
/// without its last bit, whatever the shift.
inline __attribute__((always_inline)) __m512i twice_rescaled(__m512i flipped, const Affine& affine) {
    const __m512i exponent = _mm512_set1_epi32(0x43300000);
    const __m512d base = _mm512_set1_pd(4503599627370496.0 + 2147483648.0);
    const __m512d low = _mm512_sub_pd(_mm512_castsi512_pd(_mm512_unpacklo_epi32(flipped, exponent)), base);
    const __m512d high = _mm512_sub_pd(_mm512_castsi512_pd(_mm512_unpackhi_epi32(flipped, exponent)), base);
    constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const __m512d y_low = _mm512_fmadd_round_pd(low, affine.scale_low, affine.start_low, down);
    const __m512d y_high = _mm512_fmadd_round_pd(high, affine.scale_high, affine.start_high, down);
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castpd_ps(y_low), _mm512_castpd_ps(y_high), 0x88));
}

inline __m512i flip(__m512i x) { return _mm512_xor_si512(x, _mm512_set1_epi32(INT32_MIN)); }

/// Clamps to bytes of one type, then to [low, high].
struct ByteRange {
    bool is_signed;
    __m512i low, high;
};

inline ByteRange byte_range(Type type, int32_t low, int32_t high) {
    return {type == Type::i8, _mm512_set1_epi8(static_cast<char>(low)), _mm512_set1_epi8(static_cast<char>(high))};
}

/// Two vectors of words, made of four of numbers by packing within lanes, to 64 bytes in order.
inline __attribute__((always_inline)) __m512i words_to_bytes(__m512i a, __m512i b, const ByteRange& range) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    if (range.is_signed) {
        const __m512i c = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
        return _mm512_min_epi8(_mm512_max_epi8(c, range.low), range.high);
    }
    const __m512i c = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b));
    return _mm512_min_epu8(_mm512_max_epu8(c, range.low), range.high);
}

/// Four vectors of doubled results to 64 bytes.
inline __attribute__((always_inline)) __m512i halves_to_bytes(const __m512i y[4], const ByteRange& range) {
    return words_to_bytes(_mm512_srai_epi16(_mm512_packs_epi32(y[0], y[1]), 1),
                          _mm512_srai_epi16(_mm512_packs_epi32(y[2], y[3]), 1), range);
}

inline __mmask64 first_bytes(size_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1; }

inline __mmask16 first_words(size_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

/// A table of 256 bytes in registers.
struct ByteTable {
    __m512i part[4];
};

inline ByteTable load_table(const uint8_t* bytes) {
    return {{_mm512_loadu_si512(bytes), _mm512_loadu_si512(bytes + 64), _mm512_loadu_si512(bytes + 128),
             _mm512_loadu_si512(bytes + 192)}};
}

/// `table[2 * i]` and the byte after it, i the low 7 bits of each word.
inline __m512i look_up_pairs(const ByteTable& table, __m512i i) {
    const __m512i low = _mm512_permutex2var_epi16(table.part[0], i, table.part[1]);
    const __m512i high = _mm512_permutex2var_epi16(table.part[2], i, table.part[3]);
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(i, _mm512_set1_epi16(64)), low, high);
}

/// `table[code]`, by permutations of words, as some processors have no others: of the pairs of bytes that the even
/// codes and the odd ones find, each time the byte that the code's last bit names.
inline __m512i look_up(const ByteTable& table, __m512i codes) {
    const __m512i even = look_up_pairs(table, _mm512_srli_epi16(codes, 1));
    const __m512i odd = look_up_pairs(table, _mm512_srli_epi16(codes, 9));
    const __mmask32 even_second = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(1));
    const __mmask32 odd_first = _mm512_testn_epi16_mask(codes, _mm512_set1_epi16(0x100));
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_mask_srli_epi16(even, even_second, even, 8),
                                  _mm512_mask_slli_epi16(odd, odd_first, odd, 8));
}

/// Bytes with some of their bits flipped, 0 where there are none.
inline __m512i flipped_bytes(__mmask64 inside, const uint8_t* x, __m512i mask) {
    return _mm512_maskz_mov_epi8(inside, _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, x), mask));
}

/// Copies rows of bytes, padded with zeros to fours; `flip` is 0x80 for int8, which becomes uint8 by adding 128.
inline void stage(const uint8_t* x, size_t x_stride, size_t rows, size_t inputs, uint8_t flip, uint8_t* to,
                  size_t to_stride) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(flip));
    for (size_t i = 0; i < rows; ++i, x += x_stride, to += to_stride) {
        for (size_t k = 0; k < to_stride; k += 64) {
            const __mmask64 inside = first_bytes(inputs > k ? inputs - k : 0);
            _mm512_mask_storeu_epi8(to + k, first_bytes(to_stride - k), flipped_bytes(inside, x + k, mask));
        }
    }
}

}  // namespace
}  // namespace vitquant::kernels
