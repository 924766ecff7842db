// Requantization of rows, sixteen channels at a time.
#pragma once

#include "linear_tiles.hpp"

namespace vitquant::kernels {
namespace {

template <class V>
void requantize(const RequantizePlan& plan, size_t rows, const int32_t* x, size_t x_stride, void* out,
                size_t out_stride) {
    if (!plan.quick) return scalar::requantize(plan, rows, x, x_stride, out, out_stride);
    const Requantizer& r = plan.requantizer;
    in_pieces(0, plan.channels, tile_columns, [&](size_t channel, size_t columns) {
        for (size_t row = 0; row < rows; ++row) {
            alignas(32) int32_t codes[tile_columns] = {};
            __builtin_memcpy(codes, x + row * x_stride + channel, columns * sizeof *codes);
            for (size_t j = 0; j < tile_columns; j += V::lanes) {
                const auto rescaled = V::rescaled(V::load(codes + j), V::factors(r, channel + j));
                V::store(codes + j, V::clamped(V::add(rescaled, V::load(r.zero + channel + j)), r.low, r.high));
            }
            store_codes<V>(out, r.type, row * out_stride + channel, columns, codes);
        }
    });
}

}  // namespace
}  // namespace vitquant::kernels
