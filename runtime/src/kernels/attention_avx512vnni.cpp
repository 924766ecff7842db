// Attention of bytes: panels of rows, whose scores stay in the first caches from the products to the weights.
//
// With q and k as stored, q' = q (+ 128 if signed) is unsigned and k' = k (- 128 if unsigned) is signed, as the
// instruction wants them, and so are their zero points z'. Then
//   sum (q' - zq')(k' - zk') = sum q' k' - sum zq' k' - sum q' zk' + sum zq' zk':
// the second and fourth terms belong to the key, the third to the row. In the product of weights e and v',
// the zero point of v' takes sum e times itself away.
#if defined(__x86_64__)

#include "avx512vnni.hpp"
#include "heads_avx512vnni.hpp"
#include "pieces.hpp"

namespace vitquant::kernels::vnni512 {
namespace {

/// Everything that a head needs once.
void prepare(const AttentionPlan& plan, const AttentionRun& run, size_t head, Head& h) {
    h.first = head * h.width;
    pack_keys(h, static_cast<const uint8_t*>(run.k) + h.first, run.k_stride, flip_to_signed(plan.k_type));
    pack_values(h, static_cast<const uint8_t*>(run.v) + h.first, run.v_stride, flip_to_signed(plan.v_type));
    int32_t constant = 0;
    h.has_row_term = false;
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
    }
    const __m512i start = flip(_mm512_set1_epi32(constant));
    alignas(64) const int32_t nothing[64] = {};
    for (size_t key = 0; key < h.padded_tokens; key += 64) {
        Tile<1> tile;
        multiply<1, 4>(h.zero_q, 0, h.keys + key * h.width_steps * 4, h.width_steps, nothing, tile);
        for (size_t j = 0; j < 4; ++j) {
            _mm512_store_si512(h.key_term + key + 16 * j, _mm512_sub_epi32(start, tile.sum[0][j]));
        }
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

/// Codes of the scores of some rows with 64 keys, as unsigned bytes.
struct ScoreCodes {
    Affine affine;
    ByteRange range;
    __m512i to_unsigned;
};

template <int rows>
void score_tile(const Head& h, const ScoreCodes& codes, size_t row, size_t key) {
    Tile<rows> tile;
    const size_t columns = h.tokens - key;
    multiply_columns(h.rows + row * h.width_steps * 4, h.width_steps * 4, h.keys + key * h.width_steps * 4,
                     h.width_steps, h.key_term + key, columns, tile);
    if (h.has_row_term) {
        for (int i = 0; i < rows; ++i) {
            const __m512i term = _mm512_set1_epi32(h.row_term[row + static_cast<size_t>(i)]);
            for (int j = 0; j < 4; ++j) tile.sum[i][j] = _mm512_sub_epi32(tile.sum[i][j], term);
        }
    }
    uint8_t* to = h.weights + row * h.padded_tokens + key;
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i, to += h.padded_tokens) {
        __m512i y[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) y[j] = twice_rescaled(tile.sum[i][j], codes.affine);
        const __m512i bytes = _mm512_xor_si512(halves_to_bytes(y, codes.range), codes.to_unsigned);
        _mm512_store_si512(to, _mm512_maskz_mov_epi8(first_bytes(columns), bytes));
    }
}

/// In place of the codes of one row, the exponentials of their distances from the largest; returns their sum.
int32_t exponentials(const ByteTable& table, size_t tokens, uint8_t* row) {
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
        const __m512i e = _mm512_maskz_mov_epi8(first_bytes(tokens - i), look_up(table, distance));
        sum = _mm512_dpbusd_epi32(sum, e, _mm512_set1_epi8(1));
        _mm512_store_si512(row + i, e);
    }
    return _mm512_reduce_add_epi32(sum);
}

/// Sums of weighted values, divided by the sum of the weights, to codes.
inline __m512i divided(__m512i flipped, __m512d reciprocal, const Affine& affine) {
    const __m512i exponent = _mm512_set1_epi32(0x43300000);
    const __m512d base = _mm512_set1_pd(4503599627370496.0 + 2147483648.0);
    constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const __m512d low = _mm512_sub_pd(_mm512_castsi512_pd(_mm512_unpacklo_epi32(flipped, exponent)), base);
    const __m512d high = _mm512_sub_pd(_mm512_castsi512_pd(_mm512_unpackhi_epi32(flipped, exponent)), base);
    const __m512d q_low = _mm512_roundscale_pd(_mm512_mul_pd(low, reciprocal), down);
    const __m512d q_high = _mm512_roundscale_pd(_mm512_mul_pd(high, reciprocal), down);
    const __m512d y_low = _mm512_fmadd_round_pd(q_low, affine.scale_low, affine.start_low, down);
    const __m512d y_high = _mm512_fmadd_round_pd(q_high, affine.scale_high, affine.start_high, down);
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castpd_ps(y_low), _mm512_castpd_ps(y_high), 0x88));
}

/// 2^-bits.
double power_of_half(int bits) {
    const auto pattern = static_cast<uint64_t>(1023 - bits) << 52;
    double x;
    __builtin_memcpy(&x, &pattern, sizeof x);
    return x;
}

template <int rows>
void mix_tile(const AttentionPlan& plan, const Head& h, const ByteRange& range, size_t row, size_t c, uint8_t* out,
              size_t out_stride) {
    alignas(64) int32_t start[64];
    for (int32_t& s : start) s = INT32_MIN;
    Tile<rows> tile;
    const size_t columns = h.width - c;
    multiply_columns(h.weights + row * h.padded_tokens, h.padded_tokens, h.values + c * h.token_steps * 4,
                     h.token_steps, start, columns, tile);
    Affine affine[4];
    for (size_t j = 0; j < 4; ++j) {
        const double *scale = h.scale + c + 16 * j, *begin = h.start + c + 16 * j;
        affine[j] = {_mm512_load_pd(scale), _mm512_load_pd(scale + 8), _mm512_load_pd(begin),
                     _mm512_load_pd(begin + 8)};
    }
    const double fraction = power_of_half(plan.reciprocal_bits - plan.fraction_bits);
    for (int i = 0; i < rows; ++i, out += out_stride) {
        const int32_t sum = h.sums[row + static_cast<size_t>(i)];
        const auto reciprocal = static_cast<double>((int64_t{1} << plan.reciprocal_bits) / sum) * fraction;
        const __m512i sums = _mm512_set1_epi32(sum);
        const __m512d share = _mm512_set1_pd(reciprocal);
        __m512i y[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const __m512i zero = _mm512_load_si512(h.zero_v + c + 16 * static_cast<size_t>(j));
            const __m512i centred = _mm512_sub_epi32(tile.sum[i][j], _mm512_mullo_epi32(sums, zero));
            y[j] = divided(centred, share, affine[j]);
        }
        _mm512_mask_storeu_epi8(out, first_bytes(columns), halves_to_bytes(y, range));
    }
}

/// Calls `tile` with 6 rows at a time, and with what is left.
template <template <int> class Call, class... Arguments>
void by_tiles(size_t rows, const Arguments&... arguments) {
    size_t i = 0;
    for (; i + tile_rows <= rows; i += tile_rows) Call<6>::run(i, arguments...);
    switch (rows - i) {
        case 1: Call<1>::run(i, arguments...); break;
        case 2: Call<2>::run(i, arguments...); break;
        case 3: Call<3>::run(i, arguments...); break;
        case 4: Call<4>::run(i, arguments...); break;
        case 5: Call<5>::run(i, arguments...); break;
        default: break;
    }
}

template <int rows>
struct ScoreTile {
    static void run(size_t row, const Head& h, const ScoreCodes& codes, size_t key) {
        score_tile<rows>(h, codes, row, key);
    }
};

template <int rows>
struct MixTile {
    static void run(size_t row, const Head& h, const AttentionPlan& plan, const ByteRange& range, size_t c,
                    uint8_t* out, size_t out_stride) {
        mix_tile<rows>(plan, h, range, row, c, out + row * out_stride, out_stride);
    }
};

void run_head(const AttentionPlan& plan, const AttentionRun& run, size_t head, Head& h) {
    prepare(plan, run, head, h);
    const ScoreCodes codes = {same_affine(plan.score_scale[head], plan.score_start[head]),
                              byte_range(plan.scores.type, plan.scores.low, plan.scores.high),
                              _mm512_set1_epi8(static_cast<char>(flip_to_unsigned(plan.scores.type)))};
    const ByteRange range = byte_range(plan.out.type, plan.out.low, plan.out.high);
    const ByteTable table = load_table(plan.bytes + head * 256);
    in_pieces(run.first_row, run.last_row, panel_rows(h.tokens), [&](size_t first, size_t rows) {
        const auto* q = static_cast<const uint8_t*>(run.q) + first * run.q_stride + h.first;
        stage(q, run.q_stride, rows, h.width, flip_to_unsigned(plan.q_type), h.rows, h.width_steps * 4);
        if (h.has_row_term) {
            for (size_t i = 0; i < rows; ++i) h.row_term[i] = dot(h.rows + i * h.width_steps * 4, h.zero_k, h.width);
        }
        for (size_t key = 0; key < h.tokens; key += 64) by_tiles<ScoreTile>(rows, h, codes, key);
        for (size_t i = 0; i < rows; ++i) h.sums[i] = exponentials(table, h.tokens, h.weights + i * h.padded_tokens);
        auto* out = static_cast<uint8_t*>(run.out) + first * run.out_stride + h.first;
        for (size_t c = 0; c < h.width; c += 64) by_tiles<MixTile>(rows, h, plan, range, c, out + c, run.out_stride);
    });
}

}  // namespace

size_t attention_scratch(const AttentionPlan& plan) {
    return plan.quick ? lay_out(plan, nullptr).bytes : plain::attention_scratch(plan);
}

void attention(const AttentionPlan& plan, const AttentionRun& run) {
    if (!plan.quick) return plain::attention(plan, run);
    Head h = lay_out(plan, run.scratch);
    for (size_t head = run.first_head; head < run.last_head; ++head) run_head(plan, run, head, h);
}

}  // namespace vitquant::kernels::vnni512

#endif
