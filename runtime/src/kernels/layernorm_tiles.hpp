// LayerNorm of 16-bit codes to bytes, sixteen channels at a time.
#pragma once

#include "roots.hpp"
#include "tiles.hpp"

namespace vitquant::kernels {
namespace {

template <class V>
void normalize(const LayerNormPlan& plan, const typename V::Token& token, const int16_t* x, uint8_t* out) {
    in_pieces(0, plan.channels, tile_columns, [&](size_t c, size_t columns) {
        int16_t last[tile_columns] = {};
        const int16_t* from = x + c;
        if (columns < tile_columns) {
            __builtin_memcpy(last, from, columns * sizeof *from);
            from = last;
        }
        alignas(32) int32_t codes[tile_columns];
        V::normalized(plan, token, from, c, codes);
        store_bytes<V>(codes, columns, out + c);
    });
}

template <class V>
void layernorm(const LayerNormPlan& plan, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride) {
    if (!plan.quick) return scalar::layernorm(plan, rows, x, x_stride, out, out_stride);
    const auto channels = static_cast<int64_t>(plan.channels);
    for (size_t row = 0; row < rows; ++row) {
        const auto* from = static_cast<const int16_t*>(x) + row * x_stride;
        int64_t sum = 0, squares = 0;
        for (size_t c = 0; c < plan.channels; ++c) sum += from[c], squares += int32_t{from[c]} * from[c];
        const Normalizer norm =
            normalizer(channels * (channels * squares - sum * sum), plan.epsilon, plan.headroom, channels);
        const auto token =
            V::token(norm.reciprocal, norm.shift, static_cast<int32_t>(channels), static_cast<int32_t>(sum));
        normalize<V>(plan, token, from, static_cast<uint8_t*>(out) + row * out_stride);
    }
}

}  // namespace
}  // namespace vitquant::kernels
