// The trait of NEON with dot products of bytes (Armv8.2) for kernels of tiles.
#pragma once

#include <arm_neon.h>

#include "attention_tiles.hpp"
#include "layernorm_tiles.hpp"
#include "linear_tiles.hpp"
#include "requantize_tiles.hpp"

namespace vitquant::kernels {
namespace {

struct Neon {
    static constexpr int rows = 4;  // 4 x 4 accumulators, 4 vectors of inputs, 4 of weights
    static constexpr size_t unit = 16;
    static constexpr bool centred = false;
    using LinearInput = int8_t;
    using Query = int8_t;
    using Key = int8_t;
    using Weight = uint8_t;
    using Val = uint8_t;

    // ---- Products ----

    static int8x16_t load_bytes(const int8_t* x) { return vld1q_s8(x); }

    template <int lane>
    static int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t x) {
        return vdotq_laneq_s32(sum, w, x, lane);
    }
    template <int lane>
    static int32x4_t dot(int32x4_t sum, uint8x16_t w, uint8x16_t x) {
        return vreinterpretq_s32_u32(vdotq_laneq_u32(vreinterpretq_u32_s32(sum), w, x, lane));
    }

    // Sums of products of rows of inputs, a multiple of 16, and 16 packed channels of weights, on top of `start`.
    //
    // Not inlined, so that nothing else takes part in the contest for registers.
    template <int count, class Byte>
    __attribute__((noinline)) static void multiply(const Byte* x, size_t x_stride, const Byte* w, size_t inputs,
                                                   const int32_t* start, Tile<Neon>& tile) {
        int32x4_t sum[count][4];
        each<count>([&](auto i) INLINE { each<4>([&](auto j) INLINE { sum[i][j] = load(start + 4 * j); }); });
        for (size_t k = 0; k < inputs; k += unit, x += unit, w += 16 * unit) {
            decltype(load_bytes(x)) row[count];
            each<count>([&](auto i) INLINE { row[i] = load_bytes(x + i * x_stride); });
            each<4>([&](auto lane) INLINE {
                each<4>([&](auto j) INLINE {
                    const auto weights = load_bytes(w + 64 * lane + 16 * j);
                    each<count>([&](auto i) INLINE { sum[i][j] = dot<lane>(sum[i][j], weights, row[i]); });
                });
            });
        }
        each<count>([&](auto i) INLINE { each<4>([&](auto j) INLINE { store(tile.sum[i] + 4 * j, sum[i][j]); }); });
    }

    // ---- Sums ----

    using Ints = int32x4_t;
    static constexpr size_t lanes = 4;

    static Ints load(const int32_t* x) { return vld1q_s32(x); }
    static Ints load(const int16_t* x) { return vmovl_s16(vld1_s16(x)); }
    static Ints load(const int8_t* x) { return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four_bytes(x))))); }
    static Ints load(const uint8_t* x) {
        return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(x)))));
    }
    static uint8x8_t four_bytes(const void* x) {
        uint32_t four;
        __builtin_memcpy(&four, x, sizeof four);
        return vcreate_u8(four);
    }
    static void store(int32_t* to, Ints x) { vst1q_s32(to, x); }

    static Ints same(int32_t x) { return vdupq_n_s32(x); }
    static Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
    static Ints sub(Ints a, Ints b) { return vsubq_s32(a, b); }
    static Ints sub_product(Ints a, Ints b, int32_t c) { return vmlsq_n_s32(a, b, c); }
    static Ints clamped(Ints x, int32_t low, int32_t high) { return vminq_s32(vmaxq_s32(x, same(low)), same(high)); }

    // The low bytes of sixteen numbers.
    static void to_bytes(const int32_t* x, uint8_t* to) {
        const int16x8_t low = vmovn_high_s32(vmovn_s32(load(x)), load(x + 4));
        const int16x8_t high = vmovn_high_s32(vmovn_s32(load(x + 8)), load(x + 12));
        vst1q_u8(to, vreinterpretq_u8_s8(vmovn_high_s16(vmovn_s16(low), high)));
    }

    static void to_words(const int32_t* x, int16_t* to) {
        for (size_t j = 0; j < 16; j += 4) vst1_s16(to + j, vmovn_s32(load(x + j)));
    }

    // ---- Requantization ----

    // Multipliers and shifts of four channels.
    struct Factors {
        int32x4_t multiplier;
        int64x2_t left_low, left_high;  // shifts to the left, by less than nothing
    };

    static Factors factors(int32x4_t multiplier, int32x4_t shift) {
        const int32x4_t left = vnegq_s32(shift);
        return {multiplier, vmovl_s32(vget_low_s32(left)), vmovl_high_s32(left)};
    }
    static Factors factors(const Requantizer& r, size_t channel) {
        return factors(load(r.multiplier + channel), load(r.shift + channel));
    }
    static Factors same_factors(const Requantizer& r, size_t channel) {
        return factors(same(r.multiplier[channel]), same(r.shift[channel]));
    }

    // 64-bit products, shifted with rounding.
    static Ints rescaled(Ints x, const Factors& f) {
        const int64x2_t low = vrshlq_s64(vmull_s32(vget_low_s32(x), vget_low_s32(f.multiplier)), f.left_low);
        const int64x2_t high = vrshlq_s64(vmull_high_s32(x, f.multiplier), f.left_high);
        return vmovn_high_s64(vmovn_s64(low), high);
    }

    // `rescaled(floor(x * share))`; the products have at most 52 bits.
    static Ints rescaled_share(Ints x, double share, const Factors& f) {
        const float64x2_t low = vcvtq_f64_s64(vmovl_s32(vget_low_s32(x))), high = vcvtq_f64_s64(vmovl_high_s32(x));
        const float64x2_t all = vdupq_n_f64(share);
        const int32x2_t first = vmovn_s64(vcvtmq_s64_f64(vmulq_f64(low, all)));
        return rescaled(vmovn_high_s64(first, vcvtmq_s64_f64(vmulq_f64(high, all))), f);
    }

    // ---- Bytes ----

    using Bytes = uint8x16_t;
    using ByteSums = uint32x4_t;
    static constexpr size_t bytes = 16;

    static Bytes load_bytes(const uint8_t* x) { return vld1q_u8(x); }
    static void store(uint8_t* to, Bytes x) { vst1q_u8(to, x); }
    static Bytes same_bytes(uint8_t x) { return vdupq_n_u8(x); }
    static Bytes max(Bytes a, Bytes b) { return vmaxq_u8(a, b); }
    static Bytes sub_bytes(Bytes a, Bytes b) { return vsubq_u8(a, b); }
    static uint8_t largest(Bytes x) { return vmaxvq_u8(x); }
    static ByteSums add_bytes(ByteSums sums, Bytes x) { return vdotq_u32(sums, x, vdupq_n_u8(1)); }
    static int32_t total(ByteSums sums) { return static_cast<int32_t>(vaddvq_u32(sums)); }

    // `table[code]`: indices beyond a part of the table leave what was found before.
    static Bytes look_up(const uint8_t* table, Bytes codes) {
        const uint8x16_t part = vdupq_n_u8(64);
        uint8x16_t found = vqtbl4q_u8(vld1q_u8_x4(table), codes);
        for (int i = 1; i < 4; ++i) {
            codes = vsubq_u8(codes, part);
            found = vqtbx4q_u8(found, vld1q_u8_x4(table + 64 * i), codes);
        }
        return found;
    }

    // ---- Words, two vectors for one of bytes ----

    struct Words {
        uint16x8_t even, odd;
    };

    static uint16x8_t same_words(uint16_t x) { return vdupq_n_u16(x); }
    static uint16x8_t add_words(uint16x8_t a, uint16x8_t b) { return vaddq_u16(a, b); }
    static uint16x8_t sub_words(uint16x8_t a, uint16x8_t b) { return vsubq_u16(a, b); }

    // `low[code]` and `high[code]` as a word.
    static Words look_up_words(const uint8_t* low, const uint8_t* high, Bytes codes) {
        const uint16x8_t a = vreinterpretq_u16_u8(look_up(low, codes)), b = vreinterpretq_u16_u8(look_up(high, codes));
        return {vsliq_n_u16(a, b, 8), vsriq_n_u16(b, a, 8)};
    }

    // The sum of each word and all before it, modulo 2^16.
    static uint16x8_t running_sums(uint16x8_t x) {
        const uint16x8_t nothing = vdupq_n_u16(0);
        x = vaddq_u16(x, vextq_u16(nothing, x, 7));
        x = vaddq_u16(x, vextq_u16(nothing, x, 6));
        return vaddq_u16(x, vextq_u16(nothing, x, 4));
    }

    // The last word in all places.
    static uint16x8_t last(uint16x8_t x) { return vdupq_laneq_u16(x, 7); }

    static Bytes high_bytes(uint16x8_t even, uint16x8_t odd) { return vreinterpretq_u8_u16(vsriq_n_u16(odd, even, 8)); }

    // ---- LayerNorm ----

    // What one token needs of itself.
    struct Token {
        int32_t channels, sum;
        int32x2_t reciprocal;
        int64x2_t left;  // a shift to the left, by less than nothing
    };

    // A reciprocal of more than 31 bits multiplies zeros.
    static Token token(int64_t reciprocal, int shift, int32_t channels, int32_t sum) {
        return {channels, sum, vdup_n_s32(static_cast<int32_t>(reciprocal)), vdupq_n_s64(-int64_t{shift})};
    }

    // Two channels from `c` on.
    static int32x2_t normalized(const LayerNormPlan& plan, const Token& token, int32x2_t x, size_t c) {
        const int32x2_t y = vmovn_s64(vrshlq_s64(vmull_s32(x, token.reciprocal), token.left));
        const int64x2_t scaled = vmlal_s32(vld1q_s64(plan.offset + c), y, vmovn_s64(vld1q_s64(plan.gain + c)));
        const int64x2_t code = vrshlq_s64(scaled, vnegq_s64(vld1q_s64(plan.shift + c)));
        return vmovn_s64(vaddq_s64(code, vld1q_s64(plan.zero + c)));
    }

    static void normalized(const LayerNormPlan& plan, const Token& token, const int16_t* x, size_t c, int32_t* codes) {
        for (size_t j = 0; j < 16; j += 4) {
            const int32x4_t centred = vmlaq_n_s32(same(-token.sum), load(x + j), token.channels);
            const int32x2_t low = normalized(plan, token, vget_low_s32(centred), c + j);
            const int32x2_t high = normalized(plan, token, vget_high_s32(centred), c + j + 2);
            store(codes + j, clamped(vcombine_s32(low, high), plan.low, plan.high));
        }
    }
};

}  // namespace
}  // namespace vitquant::kernels
