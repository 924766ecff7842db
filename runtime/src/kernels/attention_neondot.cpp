// Attention of bytes: panels of rows, whose scores stay in the first caches from the products to the weights. Codes
// are multiplied as they are; what their zero points add is taken off the sums.
#if defined(__aarch64__)

#include "neon.hpp"
#include "pieces.hpp"
#include "vectors_neon.hpp"

namespace vitquant::kernels::neon {
namespace {

constexpr size_t panel_rows = 3 * tile_rows;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/// One head's sizes, and its part of the scratch memory. `padded` is to 16.
struct Head {
    size_t tokens, width, first;  // first: its first channel
    size_t padded_tokens, padded_width;
    int8_t* keys;         // packed, [padded_tokens / 16][padded_width / 4][16][4]
    uint8_t* values;      // packed, [padded_width / 16][padded_tokens / 4][16][4]
    int8_t* rows;         // of q, [panel][padded_width]
    uint8_t* weights;     // [panel][padded_tokens]: scores above the lowest code, then their exponentials
    int32_t* key_start;   // [padded_tokens]: what a score has of its key alone
    int32_t* zero_value;  // [padded_width]: of v as uint8
    int32_t* nothing;     // [16]
    size_t bytes;
};

Head lay_out(const AttentionPlan& plan, void* scratch) {
    Head h{};
    h.tokens = plan.tokens, h.width = plan.channels / plan.heads;
    h.padded_tokens = round_up(h.tokens, 16), h.padded_width = round_up(h.width, 16);
    const auto take = [&](size_t bytes) {
        const uintptr_t part =
            reinterpret_cast<uintptr_t>(scratch) + h.bytes;  // no pointer yet where there is no memory
        h.bytes += round_up(bytes, 64);
        return part;
    };
    h.keys = reinterpret_cast<int8_t*>(take(h.padded_tokens * h.padded_width));
    h.values = reinterpret_cast<uint8_t*>(take(h.padded_tokens * h.padded_width));
    h.rows = reinterpret_cast<int8_t*>(take(panel_rows * h.padded_width));
    h.weights = reinterpret_cast<uint8_t*>(take(panel_rows * h.padded_tokens));
    h.key_start = reinterpret_cast<int32_t*>(take(h.padded_tokens * 4));
    h.zero_value = reinterpret_cast<int32_t*>(take(h.padded_width * 4));
    h.nothing = reinterpret_cast<int32_t*>(take(16 * 4));
    return h;
}

/// Codes and their zero points moved to int8 (or uint8), which leaves their differences.
uint8_t signed_flip(Type type) { return type == Type::u8 ? 0x80 : 0; }
int32_t signed_offset(Type type) { return type == Type::u8 ? -128 : 0; }
uint8_t unsigned_flip(Type type) { return type == Type::i8 ? 0x80 : 0; }
int32_t unsigned_offset(Type type) { return type == Type::i8 ? 128 : 0; }

void pack_key(const AttentionPlan& plan, const AttentionRun& run, const Head& h, size_t t) {
    const auto* from = static_cast<const uint8_t*>(run.k) + t * run.k_stride + h.first;
    int8_t* to = h.keys + t / 16 * 16 * h.padded_width + t % 16 * 4;
    const uint8_t flip = signed_flip(plan.k_type);
    const int32_t offset_q = signed_offset(plan.q_type), offset_k = signed_offset(plan.k_type);
    int32_t start = 0;
    for (size_t d = 0; d < h.width; ++d) {
        const auto key = static_cast<int8_t>(from[d] ^ flip);
        to[d / 4 * step_bytes + d % 4] = key;
        start -= (plan.zero_q[h.first + d] + offset_q) * (key - plan.zero_k[h.first + d] - offset_k);
    }
    h.key_start[t] = start;
}

void pack_value(const AttentionPlan& plan, const AttentionRun& run, const Head& h, size_t t) {
    const auto* from = static_cast<const uint8_t*>(run.v) + t * run.v_stride + h.first;
    uint8_t* to = h.values + t / 4 * step_bytes + t % 4;
    const uint8_t flip = unsigned_flip(plan.v_type);
    for (size_t d = 0; d < h.width; ++d) to[d / 16 * 16 * h.padded_tokens + d % 16 * 4] = from[d] ^ flip;
}

/// Everything that a head needs once.
void prepare(const AttentionPlan& plan, const AttentionRun& run, size_t head, Head& h) {
    h.first = head * h.width;
    const size_t area = h.padded_tokens * h.padded_width;
    for (size_t i = 0; i < area; ++i) h.keys[i] = 0;
    for (size_t i = 0; i < area; ++i) h.values[i] = 0;
    for (size_t i = 0; i < panel_rows * h.padded_width; ++i) h.rows[i] = 0;
    for (size_t t = h.tokens; t < h.padded_tokens; ++t) h.key_start[t] = 0;
    for (size_t t = 0; t < h.tokens; ++t) pack_key(plan, run, h, t), pack_value(plan, run, h, t);
    for (size_t d = 0; d < h.padded_width; ++d)
        h.zero_value[d] = d < h.width ? plan.zero_v[h.first + d] + unsigned_offset(plan.v_type) : 0;
    for (size_t i = 0; i < 16; ++i) h.nothing[i] = 0;
}

/// One row of q to int8; returns what its scores have of it and the keys' zero points.
int32_t stage(const AttentionPlan& plan, const AttentionRun& run, const Head& h, size_t row, int8_t* to) {
    const auto* from = static_cast<const uint8_t*>(run.q) + row * run.q_stride + h.first;
    const uint8_t flip = signed_flip(plan.q_type);
    const int32_t offset = signed_offset(plan.k_type);
    int32_t start = 0;
    for (size_t d = 0; d < h.width; ++d) {
        to[d] = static_cast<int8_t>(from[d] ^ flip);
        start -= to[d] * (plan.zero_k[h.first + d] + offset);
    }
    return start;
}

/// Scores of up to 4 rows with 16 keys.
void score_tile(const AttentionPlan& plan, const Head& h, size_t head, const int32_t* starts, size_t row, size_t rows,
                size_t key) {
    Tile tile;
    multiply_rows(rows, h.rows + row * h.padded_width, h.padded_width, h.keys + key * h.padded_width, h.padded_width,
                  h.key_start + key, tile);
    const Factors f =
        factors(vdupq_n_s32(plan.scores.multiplier[head]), vdupq_n_s32(plan.scores.shift[head]));
    const int32x4_t zero = vdupq_n_s32(plan.scores.zero[head] - plan.scores.low);
    for (size_t i = 0; i < rows; ++i) {
        const int32x4_t start = vdupq_n_s32(starts[row + i]);
        for (size_t j = 0; j < 16; j += 4) {
            const int32x4_t sum = vaddq_s32(vld1q_s32(tile.sum[i] + j), start);
            vst1q_s32(tile.sum[i] + j,
                      clamped(vaddq_s32(rescaled(sum, f), zero), 0, plan.scores.high - plan.scores.low));
        }
        vst1q_u8(h.weights + (row + i) * h.padded_tokens + key, to_bytes(tile.sum[i]));
    }
}

/// In place of the scores of one row, the exponentials of their distances from the largest; returns their sum.
int32_t exponentials(const uint8_t* table, const Head& h, uint8_t* row) {
    for (size_t i = h.tokens; i < h.padded_tokens; ++i) row[i] = 0;
    uint8x16_t largest = vdupq_n_u8(0);
    for (size_t i = 0; i < h.padded_tokens; i += 16) largest = vmaxq_u8(largest, vld1q_u8(row + i));
    const uint8x16_t maximum = vdupq_n_u8(vmaxvq_u8(largest)), one = vdupq_n_u8(1);
    uint32x4_t sums = vdupq_n_u32(0);
    for (size_t i = 0; i < h.padded_tokens; i += 16) {
        const uint8x16_t e = look_up(table, vsubq_u8(maximum, vld1q_u8(row + i)));
        vst1q_u8(row + i, e);
        sums = vdotq_u32(sums, e, one);
    }
    auto sum = static_cast<int32_t>(vaddvq_u32(sums));
    for (size_t i = h.tokens; i < h.padded_tokens; ++i) sum -= row[i], row[i] = 0;
    return sum;
}

/// `floor(x * share)` of four numbers, whose products have at most 52 bits.
inline int32x4_t shares(int32x4_t x, float64x2_t share) {
    const float64x2_t low = vcvtq_f64_s64(vmovl_s32(vget_low_s32(x))), high = vcvtq_f64_s64(vmovl_high_s32(x));
    return vmovn_high_s64(vmovn_s64(vcvtmq_s64_f64(vmulq_f64(low, share))), vcvtmq_s64_f64(vmulq_f64(high, share)));
}

void mix_tile(const AttentionPlan& plan, const AttentionRun& run, const Head& h, const int32_t* sums, size_t first_row,
              size_t row, size_t rows, size_t c) {
    Tile tile;
    multiply_rows(rows, h.weights + row * h.padded_tokens, h.padded_tokens, h.values + c * h.padded_tokens,
                  h.padded_tokens, h.nothing, tile);
    float64x2_t share[tile_rows];
    const double fraction = 1.0 / static_cast<double>(int64_t{1} << (plan.division.reciprocal_bits - plan.division.fraction_bits));
    for (size_t i = 0; i < rows; ++i) {
        share[i] =
            vdupq_n_f64(static_cast<double>((int64_t{1} << plan.division.reciprocal_bits) / sums[row + i]) * fraction);
    }
    const size_t channel = h.first + c;  // constants are padded beyond the last channel
    for (size_t j = 0; j < 16; j += 4) {
        const Factors f = factors(plan.out, channel + j);
        const int32x4_t zero = vld1q_s32(plan.out.zero + channel + j), zero_value = vld1q_s32(h.zero_value + c + j);
        for (size_t i = 0; i < rows; ++i) {
            int32_t* at = tile.sum[i] + j;
            const int32x4_t mixed = vmlsq_n_s32(vld1q_s32(at), zero_value, sums[row + i]);
            vst1q_s32(at, clamped(vaddq_s32(rescaled(shares(mixed, share[i]), f), zero), plan.out.low, plan.out.high));
        }
    }
    for (size_t i = 0; i < rows; ++i) {
        auto* out = static_cast<uint8_t*>(run.out) + (first_row + row + i) * run.out_stride + channel;
        store_bytes(out, to_bytes(tile.sum[i]), h.width - c < 16 ? h.width - c : 16);
    }
}

void run_panel(const AttentionPlan& plan, const AttentionRun& run, const Head& h, size_t head, size_t first,
               size_t rows) {
    int32_t starts[panel_rows], sums[panel_rows];
    for (size_t i = 0; i < rows; ++i) starts[i] = stage(plan, run, h, first + i, h.rows + i * h.padded_width);
    for (size_t key = 0; key < h.padded_tokens; key += 16) {
        in_pieces(0, rows, tile_rows,
                  [&](size_t i, size_t count) { score_tile(plan, h, head, starts, i, count, key); });
    }
    for (size_t i = 0; i < rows; ++i)
        sums[i] = exponentials(plan.bytes + head * 256, h, h.weights + i * h.padded_tokens);
    for (size_t c = 0; c < h.width; c += 16) {
        in_pieces(0, rows, tile_rows,
                  [&](size_t i, size_t count) { mix_tile(plan, run, h, sums, first, i, count, c); });
    }
}

}  // namespace

size_t attention_scratch(const AttentionPlan& plan) {
    return plan.quick ? lay_out(plan, nullptr).bytes : scalar::attention_scratch(plan);
}

void attention(const AttentionPlan& plan, const AttentionRun& run) {
    if (!plan.quick) return scalar::attention(plan, run);
    Head h = lay_out(plan, run.scratch);
    for (size_t head = run.first_head; head < run.last_head; ++head) {
        prepare(plan, run, head, h);
        in_pieces(run.first_row, run.last_row, panel_rows,
                  [&](size_t first, size_t rows) { run_panel(plan, run, h, head, first, rows); });
    }
}

}  // namespace vitquant::kernels::neon

#endif
