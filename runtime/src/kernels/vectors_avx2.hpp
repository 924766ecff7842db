// The trait of AVX2 for kernels of tiles, and that of AVX-VNNI, which adds products of bytes.
#pragma once

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "attention_tiles.hpp"
#include "layernorm_tiles.hpp"
#include "linear_tiles.hpp"
#include "requantize_tiles.hpp"

namespace vitquant::kernels {
namespace {

struct Avx2 {
    static constexpr int rows = 6;  // 6 x 2 accumulators, 2 vectors of weights, one of inputs and one of products
    static constexpr size_t unit = 2;
    static constexpr bool centred = true;
    // Words, as products of bytes would saturate.
    using LinearInput = int16_t;
    using Query = int16_t;
    using Key = int16_t;
    using Weight = int16_t;
    using Val = int16_t;

    // ---- Products ----

    static __m256i load_weights(const int8_t* w) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
    }
    static __m256i load_weights(const int16_t* w) { return load(reinterpret_cast<const int32_t*>(w)); }

    static __m256i add_products(__m256i sum, __m256i x, __m256i w) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
    }

    template <int count, class Weights>
    static void multiply(const int16_t* x, size_t x_stride, const Weights* w, size_t inputs, const int32_t* start,
                         Tile<Avx2>& tile) {
        multiply_tile<Avx2, count>(x, x_stride, w, inputs, start, tile);
    }

    // Sums of products of rows of inputs and 16 packed channels of weights, on top of `start`.
    //
    // Not inlined, so that nothing else takes part in the contest for registers.
    template <class V, int count, class Input, class Weights>
    __attribute__((noinline)) static void multiply_tile(const Input* x, size_t x_stride, const Weights* w,
                                                        size_t inputs, const int32_t* start, Sums<rows>& tile) {
        __m256i a[count], b[count];
        each<count>([&](auto i) INLINE { a[i] = load(start), b[i] = load(start + 8); });
        constexpr size_t n = together<Input>;
        for (size_t k = 0; k < inputs; k += n, x += n, w += 16 * n) {
            const __m256i w0 = V::load_weights(w), w1 = V::load_weights(w + 8 * n);
            each<count>([&](auto i) INLINE {
                int32_t some;
                __builtin_memcpy(&some, x + i * x_stride, sizeof some);
                const __m256i repeated = _mm256_set1_epi32(some);
                a[i] = V::add_products(a[i], repeated, w0);
                b[i] = V::add_products(b[i], repeated, w1);
            });
        }
        each<count>([&](auto i) INLINE { store(tile.sum[i], a[i]), store(tile.sum[i] + 8, b[i]); });
    }

    // ---- Sums ----

    using Ints = __m256i;
    static constexpr size_t lanes = 8;

    static Ints load(const int32_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }
    static Ints load(const int16_t* x) {
        return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    }
    static Ints load(const int8_t* x) {
        return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
    }
    static Ints load(const uint8_t* x) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
    }
    static void store(int32_t* to, Ints x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }

    static Ints same(int32_t x) { return _mm256_set1_epi32(x); }
    static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
    static Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
    static Ints clamped(Ints x, int32_t low, int32_t high) {
        return _mm256_min_epi32(_mm256_max_epi32(x, same(low)), same(high));
    }

    // The low bytes of sixteen numbers.
    static void to_bytes(const int32_t* x, uint8_t* to) {
        const __m256i low = same(0xff);
        const __m256i words = _mm256_packus_epi32(_mm256_and_si256(load(x), low), _mm256_and_si256(load(x + 8), low));
        const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                         _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
    }

    static void to_words(const int32_t* x, int16_t* to) {
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(load(x), load(x + 8)), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
    }

    // ---- Requantization ----

    // Scales and halves of eight channels.
    struct Factors {
        __m256d scale_low, scale_high, half_low, half_high;
    };

    static Factors factors(const Requantizer& r, size_t channel) {
        return {_mm256_loadu_pd(r.scale + channel), _mm256_loadu_pd(r.scale + channel + 4),
                _mm256_loadu_pd(r.start + channel), _mm256_loadu_pd(r.start + channel + 4)};
    }

    static Factors same_factors(const Requantizer& r, size_t channel) {
        const __m256d scale = _mm256_set1_pd(r.scale[channel]), half = _mm256_set1_pd(r.start[channel]);
        return {scale, scale, half, half};
    }

    static __m256d low_doubles(Ints x) { return _mm256_cvtepi32_pd(_mm256_castsi256_si128(x)); }
    static __m256d high_doubles(Ints x) { return _mm256_cvtepi32_pd(_mm256_extracti128_si256(x, 1)); }

    // `floor(x * scale + half)`.
    //
    // The product has at most 53 bits. Its sum with the half is a multiple of 2^-shift below 2^(53 - shift) + 1/2 and
    // so is exact too, but perhaps between 2^(53 - shift) and that plus 1/2, where rounding it meets no whole number.
    static Ints rescaled(__m256d low, __m256d high, const Factors& f) {
        const __m256d y_low = _mm256_floor_pd(_mm256_fmadd_pd(low, f.scale_low, f.half_low));
        const __m256d y_high = _mm256_floor_pd(_mm256_fmadd_pd(high, f.scale_high, f.half_high));
        return _mm256_set_m128i(_mm256_cvtpd_epi32(y_high), _mm256_cvtpd_epi32(y_low));
    }

    static Ints rescaled(Ints x, const Factors& f) { return rescaled(low_doubles(x), high_doubles(x), f); }

    // `rescaled(floor(x * share))`; the products have at most 52 bits.
    static Ints rescaled_share(Ints x, double share, const Factors& f) {
        const __m256d all = _mm256_set1_pd(share);
        return rescaled(_mm256_floor_pd(_mm256_mul_pd(low_doubles(x), all)),
                        _mm256_floor_pd(_mm256_mul_pd(high_doubles(x), all)), f);
    }

    // ---- Bytes ----

    using Bytes = __m256i;
    using ByteSums = __m256i;
    static constexpr size_t bytes = 32;

    static Bytes load_bytes(const uint8_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }
    static void store(uint8_t* to, Bytes x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }
    static void store(int16_t* to, Bytes x) {
        auto* words = reinterpret_cast<__m256i*>(to);
        _mm256_storeu_si256(words, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(x)));
        _mm256_storeu_si256(words + 1, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(x, 1)));
    }

    static Bytes same_bytes(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
    static Bytes max(Bytes a, Bytes b) { return _mm256_max_epu8(a, b); }
    static Bytes sub_bytes(Bytes a, Bytes b) { return _mm256_sub_epi8(a, b); }

    static uint8_t largest(Bytes x) {
        __m128i y = _mm_max_epu8(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        // The smallest of words finds the largest byte: of complements, after the odd bytes have met the even ones.
        y = _mm_xor_si128(_mm_max_epu8(y, _mm_srli_epi16(y, 8)), _mm_set1_epi8(-1));
        y = _mm_minpos_epu16(_mm_and_si128(y, _mm_set1_epi16(0xff)));
        return static_cast<uint8_t>(~_mm_cvtsi128_si32(y));
    }

    static ByteSums add_bytes(ByteSums sums, Bytes x) {
        return _mm256_add_epi64(sums, _mm256_sad_epu8(x, _mm256_setzero_si256()));
    }
    static int32_t total(ByteSums sums) {
        const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        return _mm_cvtsi128_si32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
    }

    // `table[code]`, by a permutation for each sixteen entries: those of other sixteens give 0.
    static Bytes look_up(const uint8_t* table, Bytes codes) {
        __m256i found = _mm256_setzero_si256();
        for (int i = 0; i < 16; ++i) {
            const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i));
            const __m256i within = _mm256_sub_epi8(codes, same_bytes(static_cast<uint8_t>(16 * i)));
            const __m256i index = _mm256_adds_epu8(within, same_bytes(0x70));  // from 16 on, the highest bit is set
            found = _mm256_or_si256(found, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(part), index));
        }
        return found;
    }

    // ---- Words, two vectors for one of bytes ----

    struct Words {
        __m256i even, odd;
    };

    static __m256i same_words(int16_t x) { return _mm256_set1_epi16(x); }
    static __m256i add_words(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
    static __m256i sub_words(__m256i a, __m256i b) { return _mm256_sub_epi16(a, b); }

    // `low[code]` and `high[code]` as a word, found as bytes are.
    static Words look_up_words(const uint8_t* low, const uint8_t* high, Bytes codes) {
        const auto broadcast = [](const uint8_t* x) {
            return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
        };
        __m256i a = _mm256_setzero_si256(), b = a;
        for (int i = 0; i < 16; ++i) {
            const __m256i within = _mm256_sub_epi8(codes, same_bytes(static_cast<uint8_t>(16 * i)));
            const __m256i index = _mm256_adds_epu8(within, same_bytes(0x70));
            a = _mm256_or_si256(a, _mm256_shuffle_epi8(broadcast(low + 16 * i), index));
            b = _mm256_or_si256(b, _mm256_shuffle_epi8(broadcast(high + 16 * i), index));
        }
        const __m256i odd = _mm256_set1_epi16(-256);
        return {_mm256_blendv_epi8(a, _mm256_slli_epi16(b, 8), odd),
                _mm256_blendv_epi8(_mm256_srli_epi16(a, 8), b, odd)};
    }

    // The sum of each word and all before it, modulo 2^16.
    static __m256i running_sums(__m256i x) {
        x = _mm256_add_epi16(x, _mm256_slli_si256(x, 2));
        x = _mm256_add_epi16(x, _mm256_slli_si256(x, 4));
        x = _mm256_add_epi16(x, _mm256_slli_si256(x, 8));
        const __m256i first = _mm256_permute2x128_si256(x, x, 0x08);  // the lower half in place of the upper
        return _mm256_add_epi16(x, _mm256_shuffle_epi8(first, same_words(0x0f0e)));
    }

    // The last word in all places.
    static __m256i last(__m256i x) {
        return _mm256_shuffle_epi8(_mm256_permute4x64_epi64(x, 0xff), same_words(0x0f0e));
    }

    static Bytes high_bytes(__m256i even, __m256i odd) {
        return _mm256_blendv_epi8(_mm256_srli_epi16(even, 8), odd, _mm256_set1_epi16(-256));
    }

    // ---- LayerNorm ----

    // What one token needs of itself, repeated over vectors.
    struct Token {
        __m256i channels, sum, reciprocal, half, shift;
    };

    static Token token(int64_t reciprocal, int shift, int32_t channels, int32_t sum) {
        return {same(channels), same(sum), _mm256_set1_epi64x(reciprocal),
                _mm256_set1_epi64x(int64_t{1} << (shift - 1)), _mm256_set1_epi64x(shift)};
    }

    static __m256i load4(const int64_t* x) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(x)); }

    // Shifts to the right by counts of their own, with the sign, of numbers within 2^62.
    static __m256i shifted(__m256i x, __m256i count) {
        const __m256i offset = _mm256_set1_epi64x(int64_t{1} << 62);
        return _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_add_epi64(x, offset), count),
                                _mm256_srlv_epi64(offset, count));
    }

    // Four channels in the low halves of `x`, whose constants begin at `at`.
    static __m256i normalized(const LayerNormPlan& plan, const Token& token, __m256i x, size_t at) {
        const __m256i product = _mm256_add_epi64(_mm256_mul_epi32(x, token.reciprocal), token.half);
        const __m256i y = shifted(product, token.shift);
        const __m256i scaled =
            _mm256_add_epi64(_mm256_mul_epi32(y, load4(plan.split_gain + at)), load4(plan.split_offset + at));
        return shifted(scaled, load4(plan.split_shift + at));
    }

    static void normalized(const LayerNormPlan& plan, const Token& token, const int16_t* x, size_t c, int32_t* codes) {
        for (size_t j = 0; j < 2; ++j) {  // the constants of eight even channels, then of eight odd ones
            const __m256i centred = sub(_mm256_mullo_epi32(load(x + 8 * j), token.channels), token.sum);
            const __m256i even = normalized(plan, token, centred, c + 4 * j);
            const __m256i odd = normalized(plan, token, _mm256_srli_epi64(centred, 32), c + 4 * j + 8);
            const __m256i both = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
            store(codes + 8 * j, clamped(both, plan.low, plan.high));
        }
    }
};

#if defined(__AVXVNNI__) || defined(VITQUANT_AVXVNNI_BY_AVX512)
struct AvxVnni : Avx2 {
    using LinearInput = uint8_t;

    static __m256i load_weights(const int8_t* w) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(w)); }

    static __m256i add_products(__m256i sum, __m256i x, __m256i w) {
#if defined(VITQUANT_AVXVNNI_BY_AVX512)  // the same instruction in another coding, for tests
        return _mm256_dpbusd_epi32(sum, x, w);
#else
        return _mm256_dpbusd_avx_epi32(sum, x, w);
#endif
    }

    using Avx2::multiply;  // of words, in attention

    template <int count>
    static void multiply(const uint8_t* x, size_t x_stride, const int8_t* w, size_t inputs, const int32_t* start,
                         Tile<AvxVnni>& tile) {
        multiply_tile<AvxVnni, count>(x, x_stride, w, inputs, start, tile);
    }
};
#endif

}  // namespace
}  // namespace vitquant::kernels
