// Attention of bytes: panels of rows, whose scores stay in the first caches from the products to the weights. All
// operands are words, less their zero points.
#if defined(__x86_64__)

#include "avx2.hpp"
#include "pieces.hpp"
#include "vectors_avx2.hpp"

namespace vitquant::kernels::avx {
namespace {

constexpr size_t panel_rows = 2 * tile_rows;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/// One head's sizes, and its part of the scratch memory.
struct Head {
    size_t tokens, width, first;         // first: its first channel
    size_t width_steps, token_steps;     // twos
    size_t padded_tokens, padded_width;  // to 32, to 16
    int16_t* keys;                       // packed, [padded_tokens / 16][width_steps][16][2]
    int16_t* values;                     // packed, [padded_width / 16][token_steps][16][2]
    int16_t* rows;                       // of q, [panel][width_steps * 2]
    int16_t* weights;                    // [panel][padded_tokens]: scores, then their exponentials
    double *scale, *half;                // of the scores, [16]; of the output they are in the plan
    int32_t* nothing;                    // [16]
    size_t bytes;
};

Head lay_out(const AttentionPlan& plan, void* scratch) {
    Head h{};
    h.tokens = plan.tokens, h.width = plan.channels / plan.heads;
    h.width_steps = (h.width + 1) / 2, h.token_steps = (h.tokens + 1) / 2;
    h.padded_tokens = round_up(h.tokens, 32), h.padded_width = round_up(h.width, 16);
    const auto take = [&](size_t bytes) {
        const uintptr_t part =
            reinterpret_cast<uintptr_t>(scratch) + h.bytes;  // no pointer yet where there is no memory
        h.bytes += round_up(bytes, 64);
        return part;
    };
    h.keys = reinterpret_cast<int16_t*>(take(h.padded_tokens * h.width_steps * 4));
    h.values = reinterpret_cast<int16_t*>(take(h.padded_width * h.token_steps * 4));
    h.rows = reinterpret_cast<int16_t*>(take(panel_rows * h.width_steps * 4));
    h.weights = reinterpret_cast<int16_t*>(take(panel_rows * h.padded_tokens * 2));
    h.scale = reinterpret_cast<double*>(take(16 * 8));
    h.half = reinterpret_cast<double*>(take(16 * 8));
    h.nothing = reinterpret_cast<int32_t*>(take(16 * 4));
    return h;
}

int16_t centred(const void* x, Type type, size_t at, int32_t zero) {
    const int32_t code = type == Type::i8 ? static_cast<const int8_t*>(x)[at] : static_cast<const uint8_t*>(x)[at];
    return static_cast<int16_t>(code - zero);
}

/// Everything that a head needs once.
void prepare(const AttentionPlan& plan, const AttentionRun& run, size_t head, Head& h) {
    h.first = head * h.width;
    for (size_t i = 0; i < h.padded_tokens * h.width_steps * 2; ++i) h.keys[i] = 0;
    for (size_t i = 0; i < h.padded_width * h.token_steps * 2; ++i) h.values[i] = 0;
    for (size_t t = 0; t < h.tokens; ++t) {
        int16_t* key = h.keys + (t / 16 * 16 * h.width_steps + t % 16) * 2;
        int16_t* value = h.values + t / 2 * 32 + t % 2;
        for (size_t d = 0; d < h.width; ++d) {
            const size_t c = h.first + d;
            key[d / 2 * 32 + d % 2] = centred(run.k, plan.k_type, t * run.k_stride + c, plan.zero_k[c]);
            value[(d / 16 * 16 * h.token_steps + d % 16) * 2] =
                centred(run.v, plan.v_type, t * run.v_stride + c, plan.zero_v[c]);
        }
    }
    for (size_t i = 0; i < 16; ++i)
        h.scale[i] = plan.score_scale[head], h.half[i] = plan.score_start[head], h.nothing[i] = 0;
}

/// Scores of up to 6 rows with 16 keys.
void score_tile(const AttentionPlan& plan, const Head& h, size_t head, size_t row, size_t rows, size_t key) {
    Tile tile;
    multiply_rows(rows, h.rows + row * h.width_steps * 2, h.width_steps * 2, h.keys + key * h.width_steps * 2,
                  h.width_steps, h.nothing, tile);
    const __m256i zero = _mm256_set1_epi32(plan.scores.zero[head]);
    for (size_t i = 0; i < rows; ++i) {
        const __m256i a = _mm256_add_epi32(rescaled(load8(tile.sum[i]), h.scale, h.half), zero);
        const __m256i b = _mm256_add_epi32(rescaled(load8(tile.sum[i] + 8), h.scale, h.half), zero);
        const __m256i words = _mm256_packs_epi32(clamped(a, plan.scores.low, plan.scores.high),
                                                 clamped(b, plan.scores.low, plan.scores.high));
        int16_t* to = h.weights + (row + i) * h.padded_tokens + key;
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(words, 0xd8));
    }
}

/// In place of the scores of one row, the exponentials of their distances from the largest; returns their sum.
int32_t exponentials(const uint8_t* table, const Head& h, int16_t* row) {
    int16_t largest = row[0];
    for (size_t i = 1; i < h.tokens; ++i) largest = row[i] > largest ? row[i] : largest;
    const __m256i maximum = _mm256_set1_epi16(largest);
    for (size_t i = 0; i < h.padded_tokens; i += 32) {  // rows are padded to 32
        auto* at = reinterpret_cast<__m256i*>(row + i);
        const __m256i a = _mm256_sub_epi16(maximum, _mm256_load_si256(at));
        const __m256i b = _mm256_sub_epi16(maximum, _mm256_load_si256(at + 1));
        const __m256i e = look_up(table, _mm256_packus_epi16(a, b));
        _mm256_store_si256(at, _mm256_unpacklo_epi8(e, _mm256_setzero_si256()));
        _mm256_store_si256(at + 1, _mm256_unpackhi_epi8(e, _mm256_setzero_si256()));
    }
    int32_t sum = 0;
    for (size_t i = 0; i < h.tokens; ++i) sum += row[i];
    for (size_t i = h.tokens; i < h.padded_tokens; ++i) row[i] = 0;
    return sum;
}

void mix_tile(const AttentionPlan& plan, const AttentionRun& run, const Head& h, const int32_t* sums, size_t first_row,
              size_t row, size_t rows, size_t c) {
    Tile tile;
    multiply_rows(rows, h.weights + row * h.padded_tokens, h.padded_tokens, h.values + c * h.token_steps * 2,
                  h.token_steps, h.nothing, tile);
    const size_t channel = h.first + c, columns = h.width - c < 16 ? h.width - c : 16;
    const double fraction = 1.0 / static_cast<double>(int64_t{1} << (plan.division.reciprocal_bits - plan.division.fraction_bits));
    for (size_t i = 0; i < rows; ++i) {
        const auto reciprocal = static_cast<double>((int64_t{1} << plan.division.reciprocal_bits) / sums[row + i]) * fraction;
        const __m256d share = _mm256_set1_pd(reciprocal);
        __m128i y[4];
        for (size_t j = 0; j < 4; ++j) {
            const __m256d x = _mm256_cvtepi32_pd(_mm_load_si128(reinterpret_cast<const __m128i*>(tile.sum[i] + 4 * j)));
            const size_t at = channel + 4 * j;  // constants are padded beyond the last channel
            y[j] = rescaled(_mm256_floor_pd(_mm256_mul_pd(x, share)), _mm256_loadu_pd(plan.out.scale + at),
                            _mm256_loadu_pd(plan.out.start + at));
        }
        const __m256i a = _mm256_add_epi32(_mm256_set_m128i(y[1], y[0]), load8(plan.out.zero + channel));
        const __m256i b = _mm256_add_epi32(_mm256_set_m128i(y[3], y[2]), load8(plan.out.zero + channel + 8));
        auto* out = static_cast<uint8_t*>(run.out) + (first_row + row + i) * run.out_stride + channel;
        store_bytes(out, to_bytes(clamped(a, plan.out.low, plan.out.high), clamped(b, plan.out.low, plan.out.high)),
                    columns);
    }
}

void run_panel(const AttentionPlan& plan, const AttentionRun& run, const Head& h, size_t head, size_t first,
               size_t rows) {
    for (size_t i = 0; i < rows; ++i) {
        int16_t* to = h.rows + i * h.width_steps * 2;
        to[h.width_steps * 2 - 1] = 0;
        for (size_t d = 0; d < h.width; ++d) {
            to[d] = centred(run.q, plan.q_type, (first + i) * run.q_stride + h.first + d, plan.zero_q[h.first + d]);
        }
    }
    for (size_t key = 0; key < h.padded_tokens; key += 16) {
        in_pieces(0, rows, tile_rows,
                  [&](size_t i, size_t count) { score_tile(plan, h, head, i, count, key); });
    }
    int32_t sums[panel_rows];
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

}  // namespace vitquant::kernels::avx

#endif
