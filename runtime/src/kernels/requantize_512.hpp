// Requantization of rows, 64 channels at a time.
#pragma once

#include "vectors_512.hpp"

namespace vitquant::kernels {
namespace {

// Writes sixteen doubled results of a type wider than a byte.
inline INLINE void store_halves(const Requantizer& r, __m512i y, __mmask16 inside, void* out, size_t at) {
    const __m512i low = _mm512_set1_epi32(r.low), high = _mm512_set1_epi32(r.high);
    const __m512i codes = _mm512_min_epi32(_mm512_max_epi32(_mm512_srai_epi32(y, 1), low), high);
    if (r.type == Type::i32) return _mm512_mask_storeu_epi32(static_cast<int32_t*>(out) + at, inside, codes);
    _mm256_mask_storeu_epi16(static_cast<int16_t*>(out) + at, inside, _mm512_cvtepi32_epi16(codes));
}

template <class Reals>
void requantize_row(const RequantizePlan& plan, const int32_t* x, void* out, size_t at) {
    const Requantizer& r = plan.requantizer;
    const ByteRange range = byte_range(r);
    in_pieces(0, plan.channels, channel_block, [&](size_t channel, size_t columns) {
        __m512i y[4];
        each<4>([&](auto j) INLINE {
            const size_t c = channel + 16 * j;
            const __mmask16 inside = first_words(columns > 16 * j ? columns - 16 * j : 0);
            y[j] = twice_rescaled(Reals::prepared(_mm512_maskz_loadu_epi32(inside, x + c)), Reals::of(r, c));
            if (size_of(r.type) > 1) store_halves(r, y[j], inside, out, at + c);
        });
        if (size_of(r.type) > 1) return;
        _mm512_mask_storeu_epi8(static_cast<uint8_t*>(out) + at + channel, first_bytes(columns),
                                halves_to_bytes(y, range));
    });
}

void requantize_512(const RequantizePlan& plan, size_t rows, const int32_t* x, size_t x_stride, void* out,
                    size_t out_stride) {
    if (!plan.quick) return scalar::requantize(plan, rows, x, x_stride, out, out_stride);
    for (size_t row = 0; row < rows; ++row, x += x_stride) {
        plan.requantizer.float_scale != nullptr ? requantize_row<Floats>(plan, x, out, row * out_stride)
                                                : requantize_row<Doubles>(plan, x, out, row * out_stride);
    }
}

}  // namespace
}  // namespace vitquant::kernels
