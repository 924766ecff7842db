// One head of attention: what it keeps in scratch memory, and its keys and values packed as weights are.
#pragma once

#include "vectors_512.hpp"

namespace vitquant::kernels {
namespace {

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t panel_rows(size_t tokens) { return tile_rows * (tokens <= 640 ? 4 : 2); }

uint8_t flip_to_unsigned(Type type) { return type == Type::i8 ? 0x80 : 0; }
uint8_t flip_to_signed(Type type) { return type == Type::i8 ? 0 : 0x80; }

// One head's sizes, and its part of the scratch memory.
struct Head {
    size_t tokens, width, first;         // first: its first channel
    size_t width_steps, token_steps;     // fours
    size_t padded_tokens, padded_width;  // to blocks of 64
    int8_t* keys;                        // packed, [padded_tokens / 64][width_steps][64][4]
    int8_t* values;                      // packed, [padded_width / 64][token_steps][64][4]
    int32_t* key_term;                   // [padded_tokens], xor 2^31
    uint8_t* zero_q;                     // [width_steps * 4]
    int8_t* zero_k;                      // [width_steps * 4]
    int32_t* zero_v;                     // [padded_width]
    double *scale, *start;               // of the output, [padded_width], interleaved as for requantization
    uint8_t* rows;                       // of q, [panel][width_steps * 4]
    uint8_t* weights;                    // [panel][padded_tokens]
    int32_t* row_term;                   // [panel]
    int32_t* sums;                       // [panel]
    const int32_t** addends;             // of scores, the row of each query, [panel]; null if nothing is added
    bool has_row_term, has_zero_v;       // some of them are not zero

    size_t bytes;
};

Head lay_out(const AttentionPlan& plan, void* scratch) {
    Head h{};
    h.tokens = plan.keys, h.width = plan.channels / plan.heads;
    h.width_steps = (h.width + 3) / 4, h.token_steps = (h.tokens + 3) / 4;
    h.padded_tokens = round_up(h.tokens, 64), h.padded_width = round_up(h.width, 64);
    const size_t panel = panel_rows(h.tokens);
    const auto take = [&](size_t bytes) {
        const uintptr_t part =
            reinterpret_cast<uintptr_t>(scratch) + h.bytes;  // no pointer yet where there is no memory
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
    if (plan.addends.table != nullptr) h.addends = reinterpret_cast<const int32_t**>(take(panel * sizeof(int32_t*)));
    return h;
}

// 16 rows of 16 numbers become 16 columns.
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
        const __m512i low01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x44),
                      low23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x44);
        const __m512i high01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xee),
                      high23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xee);
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

}  // namespace
}  // namespace vitquant::kernels
