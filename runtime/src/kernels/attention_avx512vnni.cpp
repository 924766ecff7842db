// Attention of bytes: panels of rows, whose scores stay in the first caches from the products to the weights.
//
// With q and k as stored, q' = q (+ 128 if signed) is unsigned and k' = k (- 128 if unsigned) is signed, as the
// instruction wants them, and so are their zero points z'. Then
//   sum (q' - zq')(k' - zk') = sum q' k' - sum zq' k' - sum q' zk' + sum zq' zk':
// the second and fourth terms belong to the key, the third to the row. In the product of weights e and v',
// the zero point of v' takes sum e times itself away.
#if defined(__x86_64__)

#include "avx512vnni.hpp"
#include "vectors_avx512vnni.hpp"

namespace vitquant::kernels::vnni512 {
namespace {

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t panel_rows(size_t tokens) { return tile_rows * (tokens <= 640 ? 4 : 2); }

uint8_t flip_to_unsigned(Type type) { return type == Type::i8 ? 0x80 : 0; }
uint8_t flip_to_signed(Type type) { return type == Type::i8 ? 0 : 0x80; }

/// One head's sizes, and its part of the scratch memory.
struct Head {
    size_t tokens, width, first;        // first: its first channel
    size_t width_steps, token_steps;    // fours
    size_t padded_tokens, padded_width;  // to blocks of 64
    int8_t* keys;       // packed, [padded_tokens / 64][width_steps][64][4]
    int8_t* values;     // packed, [padded_width / 64][token_steps][64][4]
    int32_t* key_term;  // [padded_tokens], xor 2^31
    uint8_t* zero_q;    // [width_steps * 4]
    int8_t* zero_k;     // [width_steps * 4]
    int32_t* zero_v;    // [padded_width]
    double *scale, *start;  // of the output, [padded_width], interleaved as for requantization
    uint8_t* rows;      // of q, [panel][width_steps * 4]
    uint8_t* weights;   // [panel][padded_tokens]
    int32_t* row_term;  // [panel]
    int32_t* sums;      // [panel]
    bool has_row_term;

    size_t bytes;
};

Head lay_out(const AttentionPlan& plan, void* scratch) {
    Head h{};
    h.tokens = plan.tokens, h.width = plan.channels / plan.heads;
    h.width_steps = (h.width + 3) / 4, h.token_steps = (h.tokens + 3) / 4;
    h.padded_tokens = round_up(h.tokens, 64), h.padded_width = round_up(h.width, 64);
    const size_t panel = panel_rows(h.tokens);
    const auto take = [&](size_t bytes) {
        const uintptr_t part = reinterpret_cast<uintptr_t>(scratch) + h.bytes;  // no pointer yet where there is no memory
        h.bytes += round_up(bytes, 64);
        return reinterpret_cast<uint8_t*>(part);
    };
    h.keys = reinterpret_cast<int8_t*>(take(h.padded_tokens * h.width_steps * 4));
    h.values = reinterpret_cast<int8_t*>(take(h.padded_width * h.token_steps * 4));
    h.key_term = reinterpret_cast<int32_t*>(take(h.padded_tokens * 4));
    h.zero_q = take(h.width_steps * 4);
    h.zero_k = reinterpret_cast<int8_t*>(take(h.width_steps * 4));
    h.zero_v = reinterpret_cast<int32_t*>(take(h.padded_width * 4));
    h.scale = reinterpret_cast<double*>(take(h.padded_width * 8));
    h.start = reinterpret_cast<double*>(take(h.padded_width * 8));
    h.rows = take(panel * h.width_steps * 4);
    h.weights = take(panel * h.padded_tokens);
    h.row_term = reinterpret_cast<int32_t*>(take(panel * 4));
    h.sums = reinterpret_cast<int32_t*>(take(panel * 4));
    return h;
}

/// 16 rows of 16 numbers become 16 columns.
void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Lane l of r[4 g + c] holds column 4 l + c of the rows 4 g .. 4 g + 3.
    for (int c = 0; c < 4; ++c) {
        const __m512i low01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x44), low23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x44);
        const __m512i high01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xee), high23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xee);
        t[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        t[4 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        t[8 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
    for (int i = 0; i < 16; ++i) r[i] = t[i];
}

void pack_keys(const Head& h, const uint8_t* k, size_t stride, uint8_t flip) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(flip));
    for (size_t key = 0; key < h.padded_tokens; key += 16) {
        int8_t* block = h.keys + key / 64 * 64 * h.width_steps * 4 + key % 64 * 4;
        for (size_t step = 0; step < h.width_steps; step += 16) {
            const __mmask64 inside = first_bytes(h.width - step * 4);
            __m512i r[16];
            for (size_t i = 0; i < 16; ++i) {
                const uint8_t* from = k + (key + i) * stride + step * 4;
                r[i] = key + i < h.tokens ? flipped_bytes(inside, from, mask) : _mm512_setzero_si512();
            }
            transpose(r);
            const size_t steps = h.width_steps - step < 16 ? h.width_steps - step : 16;
            for (size_t i = 0; i < steps; ++i) _mm512_store_si512(block + (step + i) * 256, r[i]);
        }
    }
}

void pack_values(const Head& h, const uint8_t* v, size_t stride, uint8_t flip) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(flip));
    for (size_t c = 0; c < h.padded_width; c += 64) {
        const __mmask64 inside = first_bytes(h.width - c);
        for (size_t step = 0; step < h.token_steps; ++step) {
            __m512i r[4];
            for (size_t i = 0; i < 4; ++i) {
                const size_t token = step * 4 + i;
                const uint8_t* from = v + token * stride + c;
                r[i] = token < h.tokens ? flipped_bytes(inside, from, mask) : _mm512_setzero_si512();
            }
            const __m512i low01 = _mm512_unpacklo_epi8(r[0], r[1]), high01 = _mm512_unpackhi_epi8(r[0], r[1]);
            const __m512i low23 = _mm512_unpacklo_epi8(r[2], r[3]), high23 = _mm512_unpackhi_epi8(r[2], r[3]);
            const __m512i a = _mm512_unpacklo_epi16(low01, low23), b = _mm512_unpackhi_epi16(low01, low23);
            const __m512i d = _mm512_unpacklo_epi16(high01, high23), e = _mm512_unpackhi_epi16(high01, high23);
            // Lane l of a, b, d, e holds the first, second, third, fourth four of the channels 16 l .. 16 l + 15.
            const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44), de_low = _mm512_shuffle_i32x4(d, e, 0x44);
            const __m512i ab_high = _mm512_shuffle_i32x4(a, b, 0xee), de_high = _mm512_shuffle_i32x4(d, e, 0xee);
            int8_t* to = h.values + (c * h.token_steps + step * 64) * 4;
            _mm512_store_si512(to, _mm512_shuffle_i32x4(ab_low, de_low, 0x88));
            _mm512_store_si512(to + 64, _mm512_shuffle_i32x4(ab_low, de_low, 0xdd));
            _mm512_store_si512(to + 128, _mm512_shuffle_i32x4(ab_high, de_high, 0x88));
            _mm512_store_si512(to + 192, _mm512_shuffle_i32x4(ab_high, de_high, 0xdd));
        }
    }
}

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
        affine[j] = {_mm512_load_pd(scale), _mm512_load_pd(scale + 8), _mm512_load_pd(begin), _mm512_load_pd(begin + 8)};
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
    const size_t panel = panel_rows(h.tokens);
    for (size_t first = run.first_row; first < run.last_row; first += panel) {
        const size_t rows = run.last_row - first < panel ? run.last_row - first : panel;
        const auto* q = static_cast<const uint8_t*>(run.q) + first * run.q_stride + h.first;
        stage(q, run.q_stride, rows, h.width, flip_to_unsigned(plan.q_type), h.rows, h.width_steps * 4);
        if (h.has_row_term) {
            for (size_t i = 0; i < rows; ++i) h.row_term[i] = dot(h.rows + i * h.width_steps * 4, h.zero_k, h.width);
        }
        for (size_t key = 0; key < h.tokens; key += 64) by_tiles<ScoreTile>(rows, h, codes, key);
        for (size_t i = 0; i < rows; ++i) h.sums[i] = exponentials(table, h.tokens, h.weights + i * h.padded_tokens);
        auto* out = static_cast<uint8_t*>(run.out) + first * run.out_stride + h.first;
        for (size_t c = 0; c < h.width; c += 64) by_tiles<MixTile>(rows, h, plan, range, c, out + c, run.out_stride);
    }
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
