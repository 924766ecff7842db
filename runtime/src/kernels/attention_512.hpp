// Attention of bytes: panels of rows, whose scores stay in the first caches from the products to the weights.
//
// With q and k as stored, q' = q (+ 128 if signed) is unsigned and k' = k (- 128 if unsigned) is signed, as the
// instruction wants them, and so are their zero points z'. Then
//   sum (q' - zq')(k' - zk') = sum q' k' - sum zq' k' - sum q' zk' + sum zq' zk':
// the second and fourth terms belong to the key, the third to the row. In the product of weights e and v',
// the zero point of v' takes sum e times itself away.
#pragma once

#include "heads_512.hpp"

namespace vitquant::kernels {
namespace {

// Everything that a head needs once.
template <class Reals>
void prepare(const AttentionPlan& plan, const AttentionRun& run, size_t head, Head& h) {
    h.first = head * h.width;
    pack_keys(h, static_cast<const uint8_t*>(run.k) + h.first, run.k_stride, flip_to_signed(plan.k_type));
    pack_values(h, static_cast<const uint8_t*>(run.v) + h.first, run.v_stride, flip_to_signed(plan.v_type));
    int32_t constant = 0;
    h.has_row_term = h.has_zero_v = false;
    for (size_t d = 0; d < h.width_steps * 4; ++d) h.zero_q[d] = 0, h.zero_k[d] = 0;
    for (size_t d = 0; d < h.padded_width; ++d) h.zero_v[d] = 0, h.scale[d] = 0, h.start[d] = fixed_point;
    for (size_t d = 0; d < h.width; ++d) {
        const int32_t q = plan.zero_q[h.first + d] + flip_to_unsigned(plan.q_type);
        const int32_t k = plan.zero_k[h.first + d] - flip_to_signed(plan.k_type);
        h.zero_q[d] = static_cast<uint8_t>(q), h.zero_k[d] = static_cast<int8_t>(k);
        h.zero_v[d] = plan.zero_v[h.first + d] - flip_to_signed(plan.v_type);
        // A head may begin anywhere in the sixteens in which the constants of all channels are interleaved.
        h.scale[interleaved(d)] = plan.out.scale[interleaved(h.first + d)];
        h.start[interleaved(d)] = plan.out.start[interleaved(h.first + d)];
        constant += q * k;
        h.has_row_term = h.has_row_term || k != 0;
        h.has_zero_v = h.has_zero_v || h.zero_v[d] != 0;
    }
    const __m512i start = Reals::prepared(_mm512_set1_epi32(constant));
    alignas(64) const int32_t nothing[64] = {};
    for (size_t key = 0; key < h.padded_tokens; key += 64) {
        const Factors factors = {h.zero_q, 0, h.keys + key * h.width_steps * 4, h.width_steps, nothing};
        multiply<1, 4>(factors, [&](auto& tile) INLINE {
            each<4>([&](auto j) INLINE {
                _mm512_store_si512(h.key_term + key + 16 * j, _mm512_sub_epi32(start, tile.sum[0][j]));
            });
        });
    }
}

int32_t dot(const uint8_t* a, const int8_t* b, size_t count) {
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += 64) {
        const __mmask64 inside = first_bytes(count - i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_maskz_loadu_epi8(inside, a + i), _mm512_maskz_loadu_epi8(inside, b + i));
    }
    return _mm512_reduce_add_epi32(sum);
}

// What makes scores codes: of unsigned bytes, signed codes being 128 more.
template <class Reals>
struct ScoreCodes {
    Reals constants;
    ByteRange range;
};

template <int rows, class Reals>
void score_tile(const Head& h, const ScoreCodes<Reals>& codes, size_t row, size_t key) {
    const size_t stride = h.width_steps * 4, columns = h.tokens - key;
    const Factors factors = {h.rows + row * stride, stride, h.keys + key * stride, h.width_steps, h.key_term + key};
    uint8_t* to = h.weights + row * h.padded_tokens + key;
    const __mmask64 inside = first_bytes(columns);
    multiply_columns<rows>(columns, factors, [&](auto& tile) INLINE {
        constexpr int vectors = std::decay_t<decltype(tile)>::vectors;
        if (h.has_row_term) {
            each<rows>([&](auto i) INLINE {
                const __m512i term = _mm512_set1_epi32(h.row_term[row + i]);
                each<vectors>([&](auto j) INLINE { tile.sum[i][j] = _mm512_sub_epi32(tile.sum[i][j], term); });
            });
        }
        each<rows>([&](auto i) INLINE {
            each<vectors>([&](auto j) INLINE { tile.sum[i][j] = twice_rescaled(tile.sum[i][j], codes.constants); });
            if (h.addends != nullptr) {
                const int32_t* addends = h.addends[row + i] + key;
                each<vectors>([&](auto j) INLINE {
                    tile.sum[i][j] = _mm512_add_epi32(tile.sum[i][j], _mm512_load_si512(addends + 16 * j));
                });
            }
            const __m512i bytes = halves_to_bytes(tile.sum[i], codes.range);
            _mm512_store_si512(to + i * h.padded_tokens, _mm512_maskz_mov_epi8(inside, bytes));
        });
    });
}

// In place of the codes of one row, what `weigh` makes of their distances from the largest; returns the sum of it.
template <class Weigh>
inline int32_t weigh_scores(size_t tokens, uint8_t* row, const Weigh& weigh) {
    __m512i largest = _mm512_setzero_si512();  // below every code, as bytes beyond the last token are
    for (size_t i = 0; i < tokens; i += 64) largest = _mm512_max_epu8(largest, _mm512_load_si512(row + i));
    __m256i m = _mm256_max_epu8(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64(largest, 1));
    __m128i n = _mm_max_epu8(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    // The smallest of words finds the largest byte: of complements, after the odd bytes have met the even ones.
    n = _mm_xor_si128(_mm_max_epu8(n, _mm_srli_epi16(n, 8)), _mm_set1_epi8(-1));
    n = _mm_minpos_epu16(_mm_and_si128(n, _mm_set1_epi16(0xff)));
    const __m512i maximum = _mm512_set1_epi8(static_cast<char>(~_mm_cvtsi128_si32(n)));
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < tokens; i += 64) {
        const __m512i distance = _mm512_sub_epi8(maximum, _mm512_load_si512(row + i));
        const __m512i weights = _mm512_maskz_mov_epi8(first_bytes(tokens - i), weigh(distance));
        sum = _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi8(1));
        _mm512_store_si512(row + i, weights);
    }
    return _mm512_reduce_add_epi32(sum);
}

// Exponentials.
int32_t exponentials(const ByteTable& table, size_t tokens, uint8_t* row) {
    return weigh_scores(tokens, row, [&](__m512i distance) INLINE { return look_up(table, distance); });
}

// Differences of rounded sums of exponentials. These have so many bits that sums modulo 2^16 tell the differences.
int32_t diffused(const WordTable& table, size_t tokens, uint8_t* row) {
    __m512i carry = _mm512_set1_epi16(1 << (diffusion_bits - 1));
    return weigh_scores(tokens, row, [&](__m512i distance) INLINE {
        const Words e = look_up(table, distance);
        const __m512i after = _mm512_add_epi16(running_sums(_mm512_add_epi16(e.even, e.odd)), carry);
        const __m512i between = _mm512_sub_epi16(after, e.odd), before = _mm512_sub_epi16(between, e.even);
        carry = _mm512_permutexvar_epi16(_mm512_set1_epi16(31), after);
        return _mm512_sub_epi8(high_bytes(between, after), high_bytes(before, between));
    });
}

// Sums of weighted values, divided by the sum of the weights, to codes.
inline __m512i divided(__m512i flipped, __m512d reciprocal, const Doubles& constants) {
    const __m512d low = _mm512_mul_pd(low_doubles(flipped), reciprocal);
    const __m512d high = _mm512_mul_pd(high_doubles(flipped), reciprocal);
    return twice_rescaled(_mm512_roundscale_pd(low, rounding_down), _mm512_roundscale_pd(high, rounding_down),
                          constants);
}

// 2^-bits.
double power_of_half(int bits) {
    const auto pattern = static_cast<uint64_t>(1023 - bits) << 52;
    double x;
    __builtin_memcpy(&x, &pattern, sizeof x);
    return x;
}

template <int rows>
void mix_tile(const AttentionPlan& plan, const Head& h, const ByteRange& range, size_t row, size_t c, uint8_t* out,
              size_t out_stride) {
    alignas(64) int32_t start[channel_block];
    for (int32_t& s : start) s = INT32_MIN;  // as `Doubles` want nothing
    const double fraction = power_of_half(plan.division.reciprocal_bits - plan.division.fraction_bits);
    double shares[rows];
    for (size_t i = 0; i < rows; ++i) {
        shares[i] = static_cast<double>((int64_t{1} << plan.division.reciprocal_bits) / h.sums[row + i]) * fraction;
    }
    const size_t columns = h.width - c;
    const __mmask64 inside = first_bytes(columns);
    const Factors factors = {h.weights + row * h.padded_tokens, h.padded_tokens, h.values + c * h.token_steps * 4,
                             h.token_steps, start};
    multiply_columns<rows>(columns, factors, [&](auto& tile) INLINE {
        each<std::decay_t<decltype(tile)>::vectors>([&](auto j) INLINE {
            const double *scale = h.scale + c + 16 * j, *begin = h.start + c + 16 * j;
            const Doubles constants = {_mm512_load_pd(scale), _mm512_load_pd(scale + 8), _mm512_load_pd(begin),
                                       _mm512_load_pd(begin + 8)};
            each<rows>([&](auto i) INLINE {
                __m512i centred = tile.sum[i][j];
                if (h.has_zero_v) {
                    const __m512i zero = _mm512_load_si512(h.zero_v + c + 16 * j);
                    centred = _mm512_sub_epi32(centred, _mm512_mullo_epi32(_mm512_set1_epi32(h.sums[row + i]), zero));
                }
                tile.sum[i][j] = divided(centred, _mm512_set1_pd(shares[i]), constants);
            });
        });
        each<rows>([&](auto i) INLINE {
            _mm512_mask_storeu_epi8(out + i * out_stride, inside, halves_to_bytes(tile.sum[i], range));
        });
    });
}

// The weights of a panel, in place of its scores.
void weigh_panel(const AttentionPlan& plan, const Head& h, size_t head, size_t rows) {
    const uint8_t* bytes = plan.table_of(head);
    if (plan.is_diffusion()) {
        const WordTable table = load_words(bytes, bytes + 256);
        for (size_t i = 0; i < rows; ++i) h.sums[i] = diffused(table, h.tokens, h.weights + i * h.padded_tokens);
    } else {
        const ByteTable table = load_table(bytes);
        for (size_t i = 0; i < rows; ++i) h.sums[i] = exponentials(table, h.tokens, h.weights + i * h.padded_tokens);
    }
}

template <class Reals>
void run_head(const AttentionPlan& plan, const AttentionRun& run, size_t head, Head& h) {
    prepare<Reals>(plan, run, head, h);
    ScoreCodes<Reals> codes = {Reals::same(plan.score_scale[head], plan.score_start[head]), byte_range(plan.scores)};
    codes.range.flip = _mm512_set1_epi8(INT8_MIN);
    const ByteRange range = byte_range(plan.out);
    in_pieces(run.first_row, run.last_row, panel_rows(h.tokens), [&](size_t first, size_t rows) {
        const auto* q = static_cast<const uint8_t*>(run.q) + first * run.q_stride + h.first;
        stage(q, run.q_stride, rows, h.width, flip_to_unsigned(plan.q_type), h.rows, h.width_steps * 4);
        if (h.has_row_term) {
            for (size_t i = 0; i < rows; ++i) h.row_term[i] = dot(h.rows + i * h.width_steps * 4, h.zero_k, h.width);
        }
        if (h.addends != nullptr) {
            for (size_t i = 0; i < rows; ++i) h.addends[i] = plan.addends.of(head, first + i);
        }
        for (size_t key = 0; key < h.tokens; key += 64) {
            by_tiles(rows, [&](auto count, size_t row) { score_tile<count>(h, codes, row, key); });
        }
        weigh_panel(plan, h, head, rows);
        auto* out = static_cast<uint8_t*>(run.out) + first * run.out_stride + h.first;
        for (size_t c = 0; c < h.width; c += 64) {
            by_tiles(rows, [&](auto count, size_t row) {
                mix_tile<count>(plan, h, range, row, c, out + row * run.out_stride + c, run.out_stride);
            });
        }
    });
}

size_t attention_scratch_512(const AttentionPlan& plan) {
    return plan.quick ? lay_out(plan, nullptr).bytes : scalar::attention_scratch(plan);
}

void attention_512(const AttentionPlan& plan, const AttentionRun& run) {
    if (!plan.quick) return scalar::attention(plan, run);
    Head h = lay_out(plan, run.scratch);
    for (size_t head = run.first_head; head < run.last_head; ++head) {
        plan.scores.float_scale != nullptr ? run_head<Floats>(plan, run, head, h)
                                           : run_head<Doubles>(plan, run, head, h);
    }
}

}  // namespace
}  // namespace vitquant::kernels
