// LayerNorm of 16-bit codes to bytes.
#if defined(__aarch64__)

#include "neon.hpp"
#include "roots.hpp"
#include "vectors_neon.hpp"

namespace vitquant::kernels::neon {
namespace {

/// What one token needs of itself.
struct Token {
    int32_t channels, sum;
    int32x2_t reciprocal;
    int64x2_t left;  // a shift to the left, by less than nothing
};

/// Two channels from `c` on.
inline int32x2_t normalized(const LayerNormPlan& plan, const Token& token, int32x2_t centred, size_t c) {
    const int32x2_t y = vmovn_s64(vrshlq_s64(vmull_s32(centred, token.reciprocal), token.left));
    const int64x2_t scaled = vmlal_s32(vld1q_s64(plan.offset + c), y, vmovn_s64(vld1q_s64(plan.gain + c)));
    const int64x2_t code = vrshlq_s64(scaled, vnegq_s64(vld1q_s64(plan.shift + c)));
    return vmovn_s64(vaddq_s64(code, vld1q_s64(plan.zero + c)));
}

inline int32x4_t four(const LayerNormPlan& plan, const Token& token, const int16_t* x, size_t c) {
    const int32x4_t centred = vmlaq_n_s32(vdupq_n_s32(-token.sum), vmovl_s16(vld1_s16(x)), token.channels);
    const int32x2_t low = normalized(plan, token, vget_low_s32(centred), c);
    const int32x2_t high = normalized(plan, token, vget_high_s32(centred), c + 2);
    return clamped(vcombine_s32(low, high), plan.low, plan.high);
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
        int32_t codes[16];
        for (size_t j = 0; j < 16; j += 4) vst1q_s32(codes + j, four(plan, token, from + j, c + j));
        store_bytes(out + c, to_bytes(codes), columns);
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
        // A reciprocal of more than 31 bits multiplies zeros.
        normalize(plan, {static_cast<int32_t>(channels), static_cast<int32_t>(sum),
                         vdup_n_s32(static_cast<int32_t>(norm.reciprocal)), vdupq_n_s64(-int64_t{norm.shift})},
                  from, to);
    }
}

}  // namespace vitquant::kernels::neon

#endif
