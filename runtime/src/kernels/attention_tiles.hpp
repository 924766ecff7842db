// Attention of bytes: panels of rows, whose scores stay in the first caches from the products to the weights.
//
// Operands are multiplied less their zero points where their type holds that (`V::centred`); else as they are, and what
// their zero points add is taken off the sums.
#pragma once

#include "tiles.hpp"

namespace vitquant::kernels {
namespace {

constexpr size_t panel_rows = 12;  // whole tiles

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// One head's sizes, and its part of the scratch memory.
template <class V>
struct Head {
    size_t tokens, width, first;      // first: its first channel
    size_t key_inputs, value_inputs;  // the width and the tokens, padded as products want them
    size_t padded_tokens;             // to vectors of bytes
    typename V::Key* keys;            // packed, [tokens / 16][key_inputs][16]
    typename V::Val* values;          // packed, [width / 16][value_inputs][16]
    typename V::Query* rows;          // [panel][key_inputs]
    uint8_t* scores;                  // above the lowest code, [panel][padded_tokens]
    typename V::Weight* weights;      // [panel][padded_tokens]; the place of the scores, if these are bytes too
    int32_t *key_start, *value_zero;  // what a score has of its key alone; what is left to take off values
    size_t bytes;
};

template <class V>
Head<V> lay_out(const AttentionPlan& plan, void* scratch) {
    Head<V> h{};
    h.tokens = plan.keys, h.width = plan.channels / plan.heads;
    h.key_inputs = round_up(h.width, V::unit), h.value_inputs = round_up(h.tokens, V::unit);
    h.padded_tokens = round_up(h.tokens, V::bytes);
    const size_t padded_width = round_up(h.width, tile_columns);
    const auto take = [&](auto*& part, size_t count) {
        // No pointer yet where there is no memory.
        part =
            reinterpret_cast<std::remove_reference_t<decltype(part)>>(reinterpret_cast<uintptr_t>(scratch) + h.bytes);
        h.bytes += round_up(count * sizeof *part, 64);
    };
    take(h.keys, h.padded_tokens * h.key_inputs);
    take(h.values, padded_width * h.value_inputs);
    take(h.rows, panel_rows * h.key_inputs);
    take(h.weights, panel_rows * h.padded_tokens);
    if constexpr (sizeof(typename V::Weight) == 1) h.scores = h.weights;
    else take(h.scores, panel_rows * h.padded_tokens);
    take(h.key_start, h.padded_tokens);
    take(h.value_zero, padded_width);
    return h;
}

// Where packed weights have an input of a column.
template <class Weight>
size_t packed_at(size_t column, size_t input, size_t inputs) {
    constexpr size_t n = together<Weight>;
    return column / 16 * 16 * inputs + input / n * 16 * n + column % 16 * n + input % n;
}

// What is taken off the codes of an operand before they are multiplied; the rest of their zero point is not.
template <class V, class Operand>
int32_t taken_off(Type type, int32_t zero) {
    return V::centred ? zero : moved_by<Operand>(type);
}

int32_t byte_at(const void* x, Type type, size_t i) {
    return type == Type::i8 ? static_cast<const int8_t*>(x)[i] : static_cast<const uint8_t*>(x)[i];
}

template <class V>
void pack_key(const AttentionPlan& plan, const AttentionRun& run, const Head<V>& h, size_t t) {
    using Key = typename V::Key;
    Key* to = h.keys + packed_at<Key>(t, 0, h.key_inputs);
    int32_t start = 0;
    for (size_t d = 0; d < h.width; ++d) {
        const size_t c = h.first + d;
        const int32_t off = taken_off<V, Key>(plan.k_type, plan.zero_k[c]);
        const auto key = static_cast<Key>(byte_at(run.k, plan.k_type, t * run.k_stride + c) - off);
        to[packed_at<Key>(0, d, h.key_inputs)] = key;
        if constexpr (!V::centred) {
            const int32_t rest_q = plan.zero_q[c] - taken_off<V, typename V::Query>(plan.q_type, plan.zero_q[c]);
            start -= rest_q * (key - (plan.zero_k[c] - off));
        }
    }
    h.key_start[t] = start;
}

template <class V>
void pack_value(const AttentionPlan& plan, const AttentionRun& run, const Head<V>& h, size_t t) {
    using Val = typename V::Val;
    Val* to = h.values + packed_at<Val>(0, t, h.value_inputs);
    for (size_t d = 0; d < h.width; ++d) {
        const size_t c = h.first + d;
        const int32_t off = taken_off<V, Val>(plan.v_type, plan.zero_v[c]);
        to[packed_at<Val>(d, 0, h.value_inputs)] =
            static_cast<Val>(byte_at(run.v, plan.v_type, t * run.v_stride + c) - off);
    }
}

// Everything that a head needs once.
template <class V>
void prepare(const AttentionPlan& plan, const AttentionRun& run, size_t head, Head<V>& h) {
    h.first = head * h.width;
    const size_t padded_width = round_up(h.width, tile_columns);
    for (size_t i = 0; i < h.padded_tokens * h.key_inputs; ++i) h.keys[i] = 0;
    for (size_t i = 0; i < padded_width * h.value_inputs; ++i) h.values[i] = 0;
    for (size_t i = 0; i < panel_rows * h.key_inputs; ++i) h.rows[i] = 0;
    for (size_t t = h.tokens; t < h.padded_tokens; ++t) h.key_start[t] = 0;
    for (size_t t = 0; t < h.tokens; ++t) pack_key(plan, run, h, t), pack_value(plan, run, h, t);
    for (size_t d = 0; d < padded_width; ++d) {
        const int32_t zero = d < h.width ? plan.zero_v[h.first + d] : 0;
        h.value_zero[d] = d < h.width ? zero - taken_off<V, typename V::Val>(plan.v_type, zero) : 0;
    }
}

// One row of q; returns what its scores have of it and the keys' zero points.
template <class V>
int32_t stage_query(const AttentionPlan& plan, const AttentionRun& run, const Head<V>& h, size_t row,
                    typename V::Query* to) {
    int32_t start = 0;
    for (size_t d = 0; d < h.width; ++d) {
        const size_t c = h.first + d;
        const int32_t off = taken_off<V, typename V::Query>(plan.q_type, plan.zero_q[c]);
        to[d] = static_cast<typename V::Query>(byte_at(run.q, plan.q_type, row * run.q_stride + c) - off);
        if constexpr (!V::centred) {
            start -= to[d] * (plan.zero_k[c] - taken_off<V, typename V::Key>(plan.k_type, plan.zero_k[c]));
        }
    }
    return start;
}

// What belongs to the queries of a panel.
struct Panel {
    int32_t starts[panel_rows];          // what their scores have of them and the keys' zero points
    const int32_t* addends[panel_rows];  // of their scores, if there are any
    int32_t sums[panel_rows];            // of the exponentials
};

// Scores of a tile's rows with 16 keys.
template <class V>
void score_tile(const AttentionPlan& plan, const Head<V>& h, size_t head, const Panel& panel, size_t row, size_t rows,
                size_t key) {
    Tile<V> tile;
    multiply<V>(rows, h.rows + row * h.key_inputs, h.key_inputs, h.keys + key * h.key_inputs, h.key_inputs,
                h.key_start + key, tile);
    const auto factors = V::same_factors(plan.scores, head);
    const auto zero = V::same(plan.scores.zero[head] - plan.scores.low);
    const auto centred = [&](auto sum, size_t i) INLINE {
        if constexpr (!V::centred) sum = V::add(sum, V::same(panel.starts[row + i]));
        return V::add(V::rescaled(sum, factors), zero);
    };
    const auto clamped = [&](auto score) INLINE { return V::clamped(score, 0, plan.scores.high - plan.scores.low); };
    for (size_t j = 0; j < tile_columns; j += V::lanes) {
        if (plan.addends.table == nullptr) {
            change_columns<V>(tile, rows, j, [&](auto sum, size_t i) INLINE { return clamped(centred(sum, i)); });
            continue;
        }
        change_columns<V>(tile, rows, j, [&](auto sum, size_t i) INLINE {
            return clamped(V::add(centred(sum, i), V::load(panel.addends[row + i] + key + j)));
        });
    }
    for (size_t i = 0; i < rows; ++i) V::to_bytes(tile.sum[i], h.scores + (row + i) * h.padded_tokens + key);
}

// From the scores of one row to what `weigh` makes of their distances from the largest; returns the sum of it.
template <class V, class Weigh>
inline int32_t weigh_scores(const Head<V>& h, size_t row, const Weigh& weigh) {
    uint8_t* scores = h.scores + row * h.padded_tokens;
    auto* weights = h.weights + row * h.padded_tokens;
    for (size_t i = h.tokens; i < h.padded_tokens; ++i) scores[i] = 0;
    auto largest = V::load_bytes(scores);
    for (size_t i = V::bytes; i < h.padded_tokens; i += V::bytes) largest = V::max(largest, V::load_bytes(scores + i));
    const auto maximum = V::same_bytes(V::largest(largest));
    typename V::ByteSums sums{};
    for (size_t i = 0; i < h.padded_tokens; i += V::bytes) {
        const auto some = weigh(V::sub_bytes(maximum, V::load_bytes(scores + i)));
        V::store(weights + i, some);
        sums = V::add_bytes(sums, some);
    }
    int32_t sum = V::total(sums);
    for (size_t i = h.tokens; i < h.padded_tokens; ++i) sum -= weights[i], weights[i] = 0;
    return sum;
}

// Exponentials.
template <class V>
int32_t exponentials(const uint8_t* table, const Head<V>& h, size_t row) {
    return weigh_scores(h, row, [&](auto distance) INLINE { return V::look_up(table, distance); });
}

// Differences of rounded sums of exponentials. These have so many bits that sums modulo 2^16 tell the differences.
template <class V>
int32_t diffused(const uint8_t* table, const Head<V>& h, size_t row) {
    auto carry = V::same_words(1 << (diffusion_bits - 1));
    return weigh_scores(h, row, [&](auto distance) INLINE {
        const auto e = V::look_up_words(table, table + 256, distance);
        const auto after = V::add_words(V::running_sums(V::add_words(e.even, e.odd)), carry);
        const auto between = V::sub_words(after, e.odd), before = V::sub_words(between, e.even);
        carry = V::last(after);
        return V::sub_bytes(V::high_bytes(between, after), V::high_bytes(before, between));
    });
}

// Weighted sums of 16 channels, divided by the sums of the weights, to codes.
template <class V>
void mix_tile(const AttentionPlan& plan, const AttentionRun& run, const Head<V>& h, const int32_t* sums,
              size_t first_row, size_t row, size_t rows, size_t c) {
    Tile<V> tile;
    alignas(32) const int32_t nothing[tile_columns] = {};
    multiply<V>(rows, h.weights + row * h.padded_tokens, h.padded_tokens, h.values + c * h.value_inputs, h.value_inputs,
                nothing, tile);
    const Division& division = plan.division;
    const double fraction =
        1.0 / static_cast<double>(int64_t{1} << (division.reciprocal_bits - division.fraction_bits));
    double shares[V::rows];
    for (size_t i = 0; i < rows; ++i) {
        shares[i] = static_cast<double>((int64_t{1} << division.reciprocal_bits) / sums[row + i]) * fraction;
    }
    const size_t channel = h.first + c;  // constants are padded beyond the last channel
    for (size_t j = 0; j < tile_columns; j += V::lanes) {
        const auto factors = V::factors(plan.out, channel + j);
        const auto zero = V::load(plan.out.zero + channel + j);
        change_columns<V>(tile, rows, j, [&](auto x, size_t i) INLINE {
            if constexpr (!V::centred) x = V::sub_product(x, V::load(h.value_zero + c + j), sums[row + i]);
            return V::clamped(V::add(V::rescaled_share(x, shares[i], factors), zero), plan.out.low, plan.out.high);
        });
    }
    const size_t columns = h.width - c < tile_columns ? h.width - c : tile_columns;
    auto* out = static_cast<uint8_t*>(run.out) + (first_row + row) * run.out_stride + channel;
    for (size_t i = 0; i < rows; ++i, out += run.out_stride) store_bytes<V>(tile.sum[i], columns, out);
}

template <class V>
void run_panel(const AttentionPlan& plan, const AttentionRun& run, const Head<V>& h, size_t head, size_t first,
               size_t rows) {
    Panel panel;
    for (size_t i = 0; i < rows; ++i) panel.starts[i] = stage_query(plan, run, h, first + i, h.rows + i * h.key_inputs);
    if (plan.addends.table != nullptr) {
        for (size_t i = 0; i < rows; ++i) panel.addends[i] = plan.addends.of(head, first + i);
    }
    for (size_t key = 0; key < h.padded_tokens; key += tile_columns) {
        in_pieces(0, rows, V::rows, [&](size_t i, size_t count) { score_tile(plan, h, head, panel, i, count, key); });
    }
    const uint8_t* table = plan.table_of(head);
    for (size_t i = 0; i < rows; ++i) {
        panel.sums[i] = plan.is_diffusion() ? diffused(table, h, i) : exponentials(table, h, i);
    }
    for (size_t c = 0; c < h.width; c += tile_columns) {
        in_pieces(0, rows, V::rows,
                  [&](size_t i, size_t count) { mix_tile(plan, run, h, panel.sums, first, i, count, c); });
    }
}

template <class V>
size_t attention_scratch(const AttentionPlan& plan) {
    return plan.quick ? lay_out<V>(plan, nullptr).bytes : scalar::attention_scratch(plan);
}

template <class V>
void attention(const AttentionPlan& plan, const AttentionRun& run) {
    static_assert(panel_rows % V::rows == 0);
    if (!plan.quick) return scalar::attention(plan, run);
    Head<V> h = lay_out<V>(plan, run.scratch);
    for (size_t head = run.first_head; head < run.last_head; ++head) {
        prepare(plan, run, head, h);
        in_pieces(run.first_row, run.last_row, panel_rows,
                  [&](size_t first, size_t rows) { run_panel(plan, run, h, head, first, rows); });
    }
}

}  // namespace
}  // namespace vitquant::kernels
