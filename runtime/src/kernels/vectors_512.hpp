// Pieces that linear layers and attention share: a tile of products, and exact requantization of sixteen sums.
#pragma once

// GCC's own headers start vectors from nothing on purpose, and GCC warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <type_traits>

#include "loops.hpp"
#include "scalar.hpp"

namespace vitquant::kernels {
namespace {

// Says that x is in a register now.
inline void keep_in_register(__m512i& x) { __asm__("" : "+v"(x)); }

constexpr int tile_rows = 6;  // 6 x 4 accumulators, 4 vectors of weights and one of inputs fill 32 registers

// Sums of products: rows x channels, of which there are 16 to a vector.
template <int rows_, int vectors_>
struct Tile {
    static constexpr int rows = rows_, vectors = vectors_;
    __m512i sum[rows][vectors];
};

// What a tile is multiplied from: rows of bytes (unsigned), a block of 64 packed channels, and what their sums begin
// with.
struct Factors {
    const uint8_t* x;
    size_t x_stride;
    const int8_t* w;
    size_t steps;
    const int32_t* start;
};

// Computes the first 16 * `vectors` channels of a tile and hands it to `finish` while it is in registers.
template <int rows, int vectors, class Finish>
__attribute__((noinline)) void multiply(const Factors& factors, const Finish& finish) {
    Tile<rows, vectors> tile;
    each<vectors>([&](auto j) INLINE {
        const __m512i first = _mm512_load_si512(factors.start + 16 * j);
        each<rows>([&](auto i) INLINE { tile.sum[i][j] = first; });
    });
    const uint8_t* x = factors.x;
    const int8_t* w = factors.w;
    const size_t steps = factors.steps, x_stride = factors.x_stride;
    for (size_t k = 0; k < steps; ++k, x += 4, w += 256) {
        __m512i weights[vectors];
        each<vectors>([&](auto j) INLINE { weights[j] = _mm512_load_si512(w + 64 * j); });
        each<rows>([&](auto i) INLINE {
            int32_t four;
            __builtin_memcpy(&four, x + i * x_stride, 4);
            const __m512i repeated = _mm512_set1_epi32(four);
            each<vectors>([&](auto j)
                              INLINE { tile.sum[i][j] = _mm512_dpbusd_epi32(tile.sum[i][j], repeated, weights[j]); });
        });
    }
    // Here all sums are in registers. Without being told, compilers make room for what follows inside of the loop.
    each<rows>([&](auto i) INLINE { each<vectors>([&](auto j) INLINE { keep_in_register(tile.sum[i][j]); }); });
    finish(tile);
}

// No more vectors than these columns need.
template <int rows, class Finish>
inline void multiply_columns(size_t columns, const Factors& factors, const Finish& finish) {
    if (columns > 48) return multiply<rows, 4>(factors, finish);
    if (columns > 32) return multiply<rows, 3>(factors, finish);
    if (columns > 16) return multiply<rows, 2>(factors, finish);
    multiply<rows, 1>(factors, finish);
}

// Calls `work(Index<rows>{}, first)` for all rows: six at a time, and what is left.
template <class Work>
inline void by_tiles(size_t rows, const Work& work) {
    size_t i = 0;
    for (; i + tile_rows <= rows; i += tile_rows) work(Index<tile_rows>{}, i);
    if (i < rows) with_index<tile_rows - 1>(rows - i, [&](auto count) { work(count, i); });
}

inline __m512i flip(__m512i x) { return _mm512_xor_si512(x, _mm512_set1_epi32(INT32_MIN)); }

constexpr int rounding_down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;

// Scale and start of sixteen channels for a narrow requantizer, in the order in which halves of a vector are
// interleaved.
struct Doubles {
    __m512d scale_low, scale_high, start_low, start_high;

    static Doubles of(const Requantizer& r, size_t channel) {
        return {_mm512_load_pd(r.scale + channel), _mm512_load_pd(r.scale + channel + 8),
                _mm512_load_pd(r.start + channel), _mm512_load_pd(r.start + channel + 8)};
    }

    static Doubles same(double scale, double start) {
        const __m512d a = _mm512_set1_pd(scale), b = _mm512_set1_pd(start);
        return {a, a, b, b};
    }

    // Sums as `twice_rescaled` wants them, xor 2^31. They can be kept so from their start.
    static __m512i prepared(__m512i sums) { return flip(sums); }
};

// Of a prepared x, which becomes the double 2^52 + 2^31 + x by its bits, from which x is exact.
inline INLINE __m512d low_doubles(__m512i flipped) {
    const __m512i bits = _mm512_unpacklo_epi32(flipped, _mm512_set1_epi32(0x43300000));
    return _mm512_sub_pd(_mm512_castsi512_pd(bits), _mm512_set1_pd(4503599627370496.0 + 2147483648.0));
}

inline INLINE __m512d high_doubles(__m512i flipped) {
    const __m512i bits = _mm512_unpackhi_epi32(flipped, _mm512_set1_epi32(0x43300000));
    return _mm512_sub_pd(_mm512_castsi512_pd(bits), _mm512_set1_pd(4503599627370496.0 + 2147483648.0));
}

// Twice `zero + rescale(x)`, or one more.
//
// One fused multiplication rounds only once, downwards, to halves: those are all that 1.5 * 2^51 leaves room for. So
// `floor(x * scale + 1/2)` is the result without its last bit, whatever the shift.
inline INLINE __m512i twice_rescaled(__m512d low, __m512d high, const Doubles& d) {
    const __m512d y_low = _mm512_fmadd_round_pd(low, d.scale_low, d.start_low, rounding_down);
    const __m512d y_high = _mm512_fmadd_round_pd(high, d.scale_high, d.start_high, rounding_down);
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castpd_ps(y_low), _mm512_castpd_ps(y_high), 0x88));
}

inline INLINE __m512i twice_rescaled(__m512i prepared, const Doubles& d) {
    return twice_rescaled(low_doubles(prepared), high_doubles(prepared), d);
}

// The same for a requantizer that is narrow enough for floats: neither x nor 22 bits of scale are rounded.
struct Floats {
    __m512 scale, start;

    static Floats of(const Requantizer& r, size_t channel) {
        return {_mm512_load_ps(r.float_scale + channel), _mm512_load_ps(r.float_start + channel)};
    }

    static Floats same(double scale, double start) {
        return {_mm512_set1_ps(static_cast<float>(scale)),
                _mm512_set1_ps(static_cast<float>(start - fixed_point) + float_fixed_point)};
    }

    static __m512i prepared(__m512i sums) { return sums; }
};

inline INLINE __m512i twice_rescaled(__m512i x, const Floats& f) {
    const __m512 y = _mm512_fmadd_round_ps(_mm512_cvtepi32_ps(x), f.scale, f.start, rounding_down);
    return _mm512_sub_epi32(_mm512_castps_si512(y), _mm512_castps_si512(_mm512_set1_ps(float_fixed_point)));
}

// Clamps to signed bytes, then to [low, high]; unsigned codes are 128 less until all is done.
struct ByteRange {
    __m512i low, high, flip;
};

inline ByteRange byte_range(Type type, int32_t low, int32_t high) {
    const auto bytes = [](int32_t x) { return _mm512_set1_epi8(static_cast<char>(x)); };
    const int32_t less = type == Type::u8 ? 128 : 0;
    return {bytes(low - less), bytes(high - less), bytes(less)};
}

inline ByteRange byte_range(const Requantizer& r) { return byte_range(r.type, r.low, r.high); }

// Two vectors of words, made of four of numbers by packing within lanes, to 64 bytes in order.
inline INLINE __m512i words_to_bytes(__m512i a, __m512i b, const ByteRange& range) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
    return _mm512_xor_si512(_mm512_min_epi8(_mm512_max_epi8(bytes, range.low), range.high), range.flip);
}

// Up to four vectors of doubled results to as many bytes.
template <int vectors>
inline INLINE __m512i halves_to_bytes(const __m512i (&y)[vectors], const ByteRange& range) {
    const __m512i a = _mm512_packs_epi32(y[0], y[vectors > 1 ? 1 : 0]);
    if constexpr (vectors <= 2) return words_to_bytes(_mm512_srai_epi16(a, 1), _mm512_srai_epi16(a, 1), range);
    const __m512i b = _mm512_packs_epi32(y[vectors > 2 ? 2 : 0], y[vectors > 3 ? 3 : 0]);
    return words_to_bytes(_mm512_srai_epi16(a, 1), _mm512_srai_epi16(b, 1), range);
}

inline __mmask64 first_bytes(size_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1; }

inline __mmask16 first_words(size_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

// A table of 256 bytes in registers.
struct ByteTable {
    __m512i part[4];
};

inline ByteTable load_table(const uint8_t* bytes) {
    return {{_mm512_loadu_si512(bytes), _mm512_loadu_si512(bytes + 64), _mm512_loadu_si512(bytes + 128),
             _mm512_loadu_si512(bytes + 192)}};
}

#if defined(__AVX512VBMI__)
// `table[code]`.
inline __m512i look_up(const ByteTable& table, __m512i codes) {
    const __m512i low = _mm512_permutex2var_epi8(table.part[0], codes, table.part[1]);
    const __m512i high = _mm512_permutex2var_epi8(table.part[2], codes, table.part[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}
#else
// `table[2 * i]` and the byte after it, i the low 7 bits of each word.
inline __m512i look_up_pairs(const ByteTable& table, __m512i i) {
    const __m512i low = _mm512_permutex2var_epi16(table.part[0], i, table.part[1]);
    const __m512i high = _mm512_permutex2var_epi16(table.part[2], i, table.part[3]);
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(i, _mm512_set1_epi16(64)), low, high);
}

// `table[code]`, by permutations of words: of the pairs of bytes that the even
// codes and the odd ones find, each time the byte that the code's last bit names.
inline __m512i look_up(const ByteTable& table, __m512i codes) {
    const __m512i even = look_up_pairs(table, _mm512_srli_epi16(codes, 1));
    const __m512i odd = look_up_pairs(table, _mm512_srli_epi16(codes, 9));
    const __mmask32 even_second = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(1));
    const __mmask32 odd_first = _mm512_testn_epi16_mask(codes, _mm512_set1_epi16(0x100));
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_mask_srli_epi16(even, even_second, even, 8),
                                  _mm512_mask_slli_epi16(odd, odd_first, odd, 8));
}
#endif

// Numbers of 16 bits for 64 places in their order: those of even places, and those of odd ones.
struct Words {
    __m512i even, odd;
};

// The high bytes of 64 words in their order.
inline __m512i high_bytes(__m512i even, __m512i odd) {
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_srli_epi16(even, 8), odd);
}

#if defined(__AVX512VBMI__)
// A table of 256 words in registers, by their bytes.
struct WordTable {
    ByteTable low, high;
};

inline WordTable load_words(const uint8_t* low, const uint8_t* high) { return {load_table(low), load_table(high)}; }

inline Words look_up(const WordTable& table, __m512i codes) {
    const __m512i low = look_up(table.low, codes), high = look_up(table.high, codes);
    return {_mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, low, _mm512_slli_epi16(high, 8)),
            _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_srli_epi16(low, 8), high)};
}
#else
// A table of 256 words in registers.
struct WordTable {
    __m512i part[8];
};

inline WordTable load_words(const uint8_t* low, const uint8_t* high) {
    WordTable table;
    const auto wide = [](const uint8_t* x) {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    };
    for (int i = 0; i < 8; ++i) {
        table.part[i] = _mm512_or_si512(wide(low + 32 * i), _mm512_slli_epi16(wide(high + 32 * i), 8));
    }
    return table;
}

// `table[i]`, i the low 8 bits of each word.
inline __m512i look_up_words(const WordTable& table, __m512i i) {
    __m512i found[4];
    each<4>([&](auto j) INLINE { found[j] = _mm512_permutex2var_epi16(table.part[2 * j], i, table.part[2 * j + 1]); });
    const __mmask32 odd = _mm512_test_epi16_mask(i, _mm512_set1_epi16(64));
    const __m512i low = _mm512_mask_blend_epi16(odd, found[0], found[1]);
    const __m512i high = _mm512_mask_blend_epi16(odd, found[2], found[3]);
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(i, _mm512_set1_epi16(128)), low, high);
}

inline Words look_up(const WordTable& table, __m512i codes) {
    return {look_up_words(table, codes), look_up_words(table, _mm512_srli_epi16(codes, 8))};
}
#endif

// The sum of each word and all before it, modulo 2^16.
inline __m512i running_sums(__m512i x) {
    x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 2));
    x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 4));
    x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 8));
    // Among eights of words, the second takes the last sum of the first, and the fourth that of the third; then the
    // third and the fourth take that of the second.
    const __m512i neighbour = _mm512_mask_blend_epi16(0xff000000, _mm512_set1_epi16(7), _mm512_set1_epi16(23));
    x = _mm512_add_epi16(x, _mm512_maskz_permutexvar_epi16(0xff00ff00, neighbour, x));
    return _mm512_add_epi16(x, _mm512_maskz_permutexvar_epi16(0xffff0000, _mm512_set1_epi16(15), x));
}

// Bytes with some of their bits flipped, 0 where there are none.
inline __m512i flipped_bytes(__mmask64 inside, const uint8_t* x, __m512i mask) {
    return _mm512_maskz_mov_epi8(inside, _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, x), mask));
}

// Copies rows of bytes, padded with zeros to fours; `flip` is 0x80 for int8, which becomes uint8 by adding 128.
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
