// Attention of one row of one head, as the format defines it, on 32-bit integers.
#pragma once

#include "scalar.hpp"

namespace vitquant::kernels {

namespace {

constexpr int share_reciprocal_bits = 50, share_bits = 30;  // of the shares of exponentials
constexpr int log2_max = 15;

// Codes of the scores of a query with all keys; both less their zero points. `row` is the number of the query.
inline void score_row(const Requantizer& r, const ScoreAddends& addends, size_t head, size_t row, const int32_t* q,
                      const int32_t* keys, size_t tokens, size_t width, int32_t* codes) {
    const int32_t* addend = addends.of(head, row);
    for (size_t t = 0; t < tokens; ++t, keys += width, addend += addends.step) {
        int32_t sum = 0;
        for (size_t d = 0; d < width; ++d) sum += q[d] * keys[d];
        codes[t] = static_cast<int32_t>(clamp(rescale(r, sum, head) + r.zero[head] + *addend, r.low, r.high));
    }
}

// Differences of rounded sums of exponentials, in place of these; returns the sum of the differences.
inline int64_t diffuse_row(size_t tokens, int32_t* row) {
    int64_t sum = int64_t{1} << (diffusion_bits - 1), before = 0;
    for (size_t t = 0; t < tokens; ++t) {
        sum += row[t];
        const int64_t after = sum >> diffusion_bits;
        row[t] = static_cast<int32_t>(after - before);
        before = after;
    }
    return before;
}

// Codes of the weights in place of those of the scores; returns what `mix` divides by: in the form `diffusion` the sum
// of the codes, else of the exponentials.
inline int64_t softmax_row(const SoftmaxRows& softmax, size_t head, size_t tokens, int32_t* row) {
    const int32_t* table = softmax.table + head / softmax.sharing * softmax.distances;
    int32_t largest = row[0];
    for (size_t t = 1; t < tokens; ++t) largest = row[t] > largest ? row[t] : largest;
    int64_t sum = 0;
    for (size_t t = 0; t < tokens; ++t) sum += row[t] = table[largest - row[t]];
    if (softmax.form == Softmax::diffusion) return diffuse_row(tokens, row);
    if (softmax.form == Softmax::uniform) {
        const int64_t reciprocal = (int64_t{1} << share_reciprocal_bits) / sum;
        for (size_t t = 0; t < tokens; ++t) {
            const int64_t share = (row[t] * reciprocal) >> (share_reciprocal_bits - share_bits);
            row[t] = static_cast<int32_t>(to_code(softmax.codes, share, head));
        }
    } else if (softmax.form == Softmax::log2) {
        for (size_t t = 0; t < tokens; ++t) {
            const int64_t square = int64_t{row[t]} * row[t];
            int q = 0;
            for (int k = 0; k <= softmax.last; ++k) q += (square << (2 * k + 1)) < sum * sum;
            row[t] = q > softmax.last ? 0 : 1 << (log2_max - q);
        }
    }
    return sum;
}

// Sums of the values, weighted; weights and values are less their zero points.
inline void weigh_row(const int32_t* weights, const int32_t* values, size_t tokens, size_t width, int32_t* sums) {
    for (size_t d = 0; d < width; ++d) sums[d] = 0;
    for (size_t t = 0; t < tokens; ++t, values += width) {
        for (size_t d = 0; d < width; ++d) sums[d] += weights[t] * values[d];
    }
}

// 2^reciprocal_bits, divided by the sum of the weights.
inline int64_t reciprocal_of(const Division& division, int64_t sum) {
    return division.normalize ? (int64_t{1} << division.reciprocal_bits) / sum : 0;
}

inline int64_t divided(const Division& division, int64_t x, int64_t reciprocal) {
    return division.normalize ? (x * reciprocal) >> (division.reciprocal_bits - division.fraction_bits) : x;
}

}  // namespace
}  // namespace vitquant::kernels
