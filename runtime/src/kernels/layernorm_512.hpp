// LayerNorm of 16-bit codes to bytes.
#pragma once

#include "roots.hpp"
#include "vectors_512.hpp"

namespace vitquant::kernels {
namespace {

struct Sums {
    int64_t sum, squares;
};

Sums sums_of(const int16_t* x, size_t channels) {
    const __m512i ones = _mm512_set1_epi16(1), low_half = _mm512_set1_epi64(0xffffffff);
    __m512i sum = _mm512_setzero_si512(), even = sum, odd = sum;
    for (size_t c = 0; c < channels; c += 32) {
        const size_t left = channels - c;
        const __mmask32 inside = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
        const __m512i v = _mm512_maskz_loadu_epi16(inside, x + c);
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(v, ones));
        const __m512i pairs = _mm512_madd_epi16(v, v);  // at most 2^31, unsigned
        even = _mm512_add_epi64(even, _mm512_and_si512(pairs, low_half));
        odd = _mm512_add_epi64(odd, _mm512_srli_epi64(pairs, 32));
    }
    return {_mm512_reduce_add_epi32(sum), _mm512_reduce_add_epi64(_mm512_add_epi64(even, odd))};
}

// What one token needs of itself, repeated over vectors.
struct Token {
    __m512i channels, sum, reciprocal, half;
    __m128i shift;
};

Token token_of(const LayerNormPlan& plan, const int16_t* x) {
    const auto channels = static_cast<int64_t>(plan.channels);
    const Sums sums = sums_of(x, plan.channels);
    const int64_t squares = channels * (channels * sums.squares - sums.sum * sums.sum);
    const Normalizer norm = normalizer(squares, plan.epsilon, plan.headroom, channels);
    return {_mm512_set1_epi32(static_cast<int32_t>(channels)), _mm512_set1_epi32(static_cast<int32_t>(sums.sum)),
            _mm512_set1_epi64(norm.reciprocal), _mm512_set1_epi64(int64_t{1} << (norm.shift - 1)),
            _mm_cvtsi32_si128(norm.shift)};
}

// Eight channels in the low halves of `centred`.
inline __m512i normalized(const LayerNormPlan& plan, const Token& token, __m512i centred, size_t at) {
    const __m512i product = _mm512_add_epi64(_mm512_mul_epi32(centred, token.reciprocal), token.half);
    const __m512i y = _mm512_sra_epi64(product, token.shift);
    const __m512i scaled = _mm512_add_epi64(_mm512_mul_epi32(y, _mm512_load_si512(plan.split_gain + at)),
                                            _mm512_load_si512(plan.split_offset + at));
    return _mm512_srav_epi64(scaled, _mm512_load_si512(plan.split_shift + at));
}

inline __m512i sixteen(const LayerNormPlan& plan, const Token& token, const int16_t* x, size_t c) {
    const __mmask16 inside = plan.channels > c ? first_words(plan.channels - c) : __mmask16{0};
    const __m512i v = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(inside, x + c));
    const __m512i centred = _mm512_sub_epi32(_mm512_mullo_epi32(v, token.channels), token.sum);
    const __m512i even = normalized(plan, token, centred, c);
    const __m512i odd = normalized(plan, token, _mm512_srli_epi64(centred, 32), c + 8);
    return _mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CCAA);
}

void normalize(const LayerNormPlan& plan, const Token& token, const ByteRange& range, const int16_t* x, uint8_t* out) {
    for (size_t c = 0; c < plan.channels; c += 64) {
        const __m512i a = _mm512_packs_epi32(sixteen(plan, token, x, c), sixteen(plan, token, x, c + 16));
        const __m512i b = _mm512_packs_epi32(sixteen(plan, token, x, c + 32), sixteen(plan, token, x, c + 48));
        _mm512_mask_storeu_epi8(out + c, first_bytes(plan.channels - c), words_to_bytes(a, b, range));
    }
}

void layernorm_512(const LayerNormPlan& plan, size_t rows, const void* x, size_t x_stride, void* out,
                   size_t out_stride) {
    if (!plan.quick) return scalar::layernorm(plan, rows, x, x_stride, out, out_stride);
    const ByteRange range = byte_range(plan.type, plan.low, plan.high);
    const auto* from = static_cast<const int16_t*>(x);
    auto* to = static_cast<uint8_t*>(out);
    // Roots and divisions take long, but those of neighbouring rows overlap where nothing else stands between them.
    constexpr size_t together = 8;
    in_pieces(0, rows, together, [&](size_t first, size_t count) {
        Token tokens[together];
        for (size_t i = 0; i < count; ++i) tokens[i] = token_of(plan, from + (first + i) * x_stride);
        for (size_t i = 0; i < count; ++i) {
            normalize(plan, tokens[i], range, from + (first + i) * x_stride, to + (first + i) * out_stride);
        }
    });
}

}  // namespace
}  // namespace vitquant::kernels
