// LayerNorm of 16-bit codes to bytes.
#if defined(__x86_64__)

#include "avx2.hpp"
#include "roots.hpp"
#include "vectors_avx2.hpp"

namespace vitquant::kernels::avx {
namespace {

/// Shifts to the right by counts of their own, with the sign, of numbers within 2^62.
inline __m256i shifted(__m256i x, __m256i count) {
    const __m256i offset = _mm256_set1_epi64x(int64_t{1} << 62);
    return _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_add_epi64(x, offset), count), _mm256_srlv_epi64(offset, count));
}

inline __m256i load4(const int64_t* x) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(x)); }

/// What one token needs of itself, repeated over vectors.
struct Token {
    __m256i channels, sum, reciprocal, half, shift;
};

/// Four channels in the low halves of `centred`.
inline __m256i normalized(const LayerNormPlan& plan, const Token& token, __m256i centred, size_t at) {
    const __m256i product = _mm256_add_epi64(_mm256_mul_epi32(centred, token.reciprocal), token.half);
    const __m256i y = shifted(product, token.shift);
    const __m256i scaled =
        _mm256_add_epi64(_mm256_mul_epi32(y, load4(plan.split_gain + at)), load4(plan.split_offset + at));
    return shifted(scaled, load4(plan.split_shift + at));
}

inline __m256i eight(const LayerNormPlan& plan, const Token& token, const int16_t* x, size_t at) {
    const __m256i v = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    const __m256i centred = _mm256_sub_epi32(_mm256_mullo_epi32(v, token.channels), token.sum);
    const __m256i even = normalized(plan, token, centred, at);
    const __m256i odd = normalized(plan, token, _mm256_srli_epi64(centred, 32), at + 8);
    return clamped(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa), plan.low, plan.high);
}

void normalize(const LayerNormPlan& plan, const Token& token, const int16_t* x, uint8_t* out) {
    for (size_t c = 0; c < plan.channels; c += 16) {
        const size_t left = plan.channels - c, columns = left < 16 ? left : 16;
        int16_t last[16] = {};
        const int16_t* from = x + c;
        if (columns < 16) {
            __builtin_memcpy(last, from, columns * 2);
            from = last;
        }
        store_bytes(out + c, to_bytes(eight(plan, token, from, c), eight(plan, token, from + 8, c + 4)), columns);
    }
}

}  // namespace

void layernorm(const LayerNormPlan& plan, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride) {
    if (!plan.quick) return scalar::layernorm(plan, rows, x, x_stride, out, out_stride);
    const auto channels = static_cast<int64_t>(plan.channels);
    for (size_t row = 0; row < rows; ++row) {
        const auto* from = static_cast<const int16_t*>(x) + row * x_stride;
        auto* to = static_cast<uint8_t*>(out) + row * out_stride;
        int64_t sum = 0, squares = 0;
        for (size_t c = 0; c < plan.channels; ++c) sum += from[c], squares += int32_t{from[c]} * from[c];
        const Normalizer norm =
            normalizer(channels * (channels * squares - sum * sum), plan.epsilon, plan.headroom, channels);
        const Token token = {_mm256_set1_epi32(static_cast<int32_t>(channels)),
                             _mm256_set1_epi32(static_cast<int32_t>(sum)), _mm256_set1_epi64x(norm.reciprocal),
                             _mm256_set1_epi64x(int64_t{1} << (norm.shift - 1)), _mm256_set1_epi64x(norm.shift)};
        normalize(plan, token, from, to);
    }
}

}  // namespace vitquant::kernels::avx

#endif
