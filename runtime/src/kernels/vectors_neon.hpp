// Pieces that linear layers and attention share: a tile of products of bytes, exact requantization, look-ups, and
// sixteen codes of any type.
#pragma once

#include <arm_neon.h>

#include "scalar.hpp"

namespace vitquant::kernels {
namespace {

constexpr size_t tile_rows = 4;  // 4 x 4 accumulators, 4 vectors of inputs, 4 of weights
constexpr size_t tile_columns = 16;
constexpr size_t step_bytes = 4 * tile_columns;  // packed weights: four inputs of each column
constexpr size_t input_bytes = 16;               // rows of inputs are padded to it

struct alignas(16) Tile {
    int32_t sum[tile_rows][tile_columns];
};

/// Sixteen accumulators of one row. They are named, not an array: compilers keep arrays in memory.
struct Row {
    int32x4_t a, b, c, d;
};

template <int lane>
inline int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t x) {
    return vdotq_laneq_s32(sum, w, x, lane);
}

template <int lane>
inline int32x4_t dot(int32x4_t sum, uint8x16_t w, uint8x16_t x) {
    return vreinterpretq_s32_u32(vdotq_laneq_u32(vreinterpretq_u32_s32(sum), w, x, lane));
}

inline int8x16_t load_bytes(const int8_t* x) { return vld1q_s8(x); }
inline uint8x16_t load_bytes(const uint8_t* x) { return vld1q_u8(x); }

template <int lane, class Bytes>
inline __attribute__((always_inline)) void accumulate(Row& sum, Bytes x, Bytes w0, Bytes w1, Bytes w2, Bytes w3) {
    sum.a = dot<lane>(sum.a, w0, x);
    sum.b = dot<lane>(sum.b, w1, x);
    sum.c = dot<lane>(sum.c, w2, x);
    sum.d = dot<lane>(sum.d, w3, x);
}

template <int lane, int rows, class Byte, class Bytes>
inline __attribute__((always_inline)) void step(Row& s0, Row& s1, Row& s2, Row& s3, Bytes x0, Bytes x1, Bytes x2,
                                                Bytes x3, const Byte* w) {
    w += lane * step_bytes;
    const Bytes w0 = load_bytes(w), w1 = load_bytes(w + 16), w2 = load_bytes(w + 32), w3 = load_bytes(w + 48);
    accumulate<lane>(s0, x0, w0, w1, w2, w3);
    if constexpr (rows > 1) accumulate<lane>(s1, x1, w0, w1, w2, w3);
    if constexpr (rows > 2) accumulate<lane>(s2, x2, w0, w1, w2, w3);
    if constexpr (rows > 3) accumulate<lane>(s3, x3, w0, w1, w2, w3);
}

inline __attribute__((always_inline)) void keep(int32_t* to, const Row& sum) {
    vst1q_s32(to, sum.a), vst1q_s32(to + 4, sum.b), vst1q_s32(to + 8, sum.c), vst1q_s32(to + 12, sum.d);
}

/// Sums of products of `rows` rows and 16 channels of weights, packed in fours, on top of `start`; `inputs` is a
/// multiple of 16.
///
/// Not inlined, so that nothing else takes part in the contest for registers.
template <int rows, class Byte>
__attribute__((noinline)) void multiply(const Byte* x, size_t x_stride, const Byte* w, size_t inputs,
                                        const int32_t* start, Tile& tile) {
    const Row first = {vld1q_s32(start), vld1q_s32(start + 4), vld1q_s32(start + 8), vld1q_s32(start + 12)};
    Row s0 = first, s1 = first, s2 = first, s3 = first;
    for (size_t k = 0; k < inputs; k += input_bytes, x += input_bytes, w += 4 * step_bytes) {
        const auto x0 = load_bytes(x);
        auto x1 = x0, x2 = x0, x3 = x0;
        if constexpr (rows > 1) x1 = load_bytes(x + x_stride);
        if constexpr (rows > 2) x2 = load_bytes(x + 2 * x_stride);
        if constexpr (rows > 3) x3 = load_bytes(x + 3 * x_stride);
        step<0, rows>(s0, s1, s2, s3, x0, x1, x2, x3, w);
        step<1, rows>(s0, s1, s2, s3, x0, x1, x2, x3, w);
        step<2, rows>(s0, s1, s2, s3, x0, x1, x2, x3, w);
        step<3, rows>(s0, s1, s2, s3, x0, x1, x2, x3, w);
    }
    keep(tile.sum[0], s0);
    if constexpr (rows > 1) keep(tile.sum[1], s1);
    if constexpr (rows > 2) keep(tile.sum[2], s2);
    if constexpr (rows > 3) keep(tile.sum[3], s3);
}

template <class Byte>
inline void multiply_rows(size_t rows, const Byte* x, size_t x_stride, const Byte* w, size_t inputs,
                          const int32_t* start, Tile& tile) {
    switch (rows) {
        case 1: return multiply<1>(x, x_stride, w, inputs, start, tile);
        case 2: return multiply<2>(x, x_stride, w, inputs, start, tile);
        case 3: return multiply<3>(x, x_stride, w, inputs, start, tile);
        default: return multiply<4>(x, x_stride, w, inputs, start, tile);
    }
}

/// Multipliers and shifts of four channels.
struct Factors {
    int32x4_t multiplier;
    int64x2_t left_low, left_high;  // shifts to the left, by less than nothing
};

inline Factors factors(int32x4_t multiplier, int32x4_t shift) {
    const int32x4_t left = vnegq_s32(shift);
    return {multiplier, vmovl_s32(vget_low_s32(left)), vmovl_high_s32(left)};
}

inline Factors factors(const Requantizer& r, size_t channel) {
    return factors(vld1q_s32(r.multiplier + channel), vld1q_s32(r.shift + channel));
}

/// `rescale(x)` of four channels, for a narrow requantizer: 64-bit products, shifted with rounding.
inline int32x4_t rescaled(int32x4_t x, const Factors& f) {
    const int64x2_t low = vrshlq_s64(vmull_s32(vget_low_s32(x), vget_low_s32(f.multiplier)), f.left_low);
    const int64x2_t high = vrshlq_s64(vmull_high_s32(x, f.multiplier), f.left_high);
    return vmovn_high_s64(vmovn_s64(low), high);
}

inline int32x4_t clamped(int32x4_t x, int32_t low, int32_t high) {
    return vminq_s32(vmaxq_s32(x, vdupq_n_s32(low)), vdupq_n_s32(high));
}

/// The low bytes of sixteen numbers.
inline uint8x16_t to_bytes(const int32_t* x) {
    const int16x8_t low = vmovn_high_s32(vmovn_s32(vld1q_s32(x)), vld1q_s32(x + 4));
    const int16x8_t high = vmovn_high_s32(vmovn_s32(vld1q_s32(x + 8)), vld1q_s32(x + 12));
    return vreinterpretq_u8_s8(vmovn_high_s16(vmovn_s16(low), high));
}

/// `columns` of sixteen elements of `size` bytes, written from a buffer where they are fewer.
template <class Write>
inline void write_columns(void* out, size_t size, size_t columns, Write write) {
    if (columns >= tile_columns) return write(static_cast<uint8_t*>(out));
    alignas(16) uint8_t all[4 * tile_columns];
    write(all);
    __builtin_memcpy(out, all, columns * size);
}

inline void store_bytes(void* out, uint8x16_t bytes, size_t columns) {
    write_columns(out, 1, columns, [&](uint8_t* to) { vst1q_u8(to, bytes); });
}

inline void widen(int16x8_t x, int32_t* to) {
    vst1q_s32(to, vmovl_s16(vget_low_s16(x)));
    vst1q_s32(to + 4, vmovl_high_s16(x));
}

/// `table[code]` of 16 bytes: indices beyond a part of the table leave what was found before.
inline uint8x16_t look_up(const uint8_t* table, uint8x16_t codes) {
    const uint8x16_t part = vdupq_n_u8(64);
    uint8x16_t found = vqtbl4q_u8(vld1q_u8_x4(table), codes);
    for (int i = 1; i < 4; ++i) {
        codes = vsubq_u8(codes, part);
        found = vqtbx4q_u8(found, vld1q_u8_x4(table + 64 * i), codes);
    }
    return found;
}

}  // namespace
}  // namespace vitquant::kernels
