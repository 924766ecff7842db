// Linear layers of bytes: tiles of a few rows x 16 channels, everything after the products done while a tile is near.
#pragma once

#include "tiles.hpp"

namespace vitquant::kernels {
namespace {

constexpr size_t staged_bytes = 96 * 1024;  // of the inputs: a part of the second cache

struct Place {
    size_t row, channel, rows, columns;
};

template <class V>
size_t stride_of(const LinearPlan& plan) {
    return plan.steps * together<typename V::LinearInput>;
}

template <class V>
size_t staged_rows(const LinearPlan& plan) {
    const size_t rows = staged_bytes / (plan.steps * 4) / V::rows * V::rows;
    return rows < V::rows ? V::rows : rows;
}

template <class Code, class Input>
void stage(const Code* x, size_t inputs, int32_t moved, Input* to, size_t stride) {
    const auto less = static_cast<Input>(moved);
    for (size_t k = 0; k < inputs; ++k) to[k] = static_cast<Input>(static_cast<Input>(x[k]) - less);
    for (size_t k = inputs; k < stride; ++k) to[k] = 0;
}

template <class V>
void to_codes(const Requantizer& r, const Place& at, Tile<V>& tile) {
    for (size_t j = 0; j < tile_columns; j += V::lanes) {
        const auto factors = V::factors(r, at.channel + j);
        const auto zero = V::load(r.zero + at.channel + j);
        change_columns<V>(tile, at.rows, j, [&](auto x, size_t) INLINE {
            return V::clamped(V::add(V::rescaled(x, factors), zero), r.low, r.high);
        });
    }
}

template <class V, class Code>
void widen(const void* from, int32_t* to) {
    for (size_t j = 0; j < tile_columns; j += V::lanes) V::store(to + j, V::load(static_cast<const Code*>(from) + j));
}

template <class V>
void load_codes(const void* data, Type type, size_t first, size_t columns, int32_t* to) {
    const auto* from = static_cast<const uint8_t*>(data) + first * size_of(type);
    alignas(32) uint8_t all[4 * tile_columns] = {};
    if (columns < tile_columns) {
        __builtin_memcpy(all, from, columns * size_of(type));
        from = all;
    }
    switch (type) {
        case Type::i8: return widen<V, int8_t>(from, to);
        case Type::u8: return widen<V, uint8_t>(from, to);
        case Type::i16: return widen<V, int16_t>(from, to);
        case Type::i32: return widen<V, int32_t>(from, to);
    }
}

template <class V>
void store_codes(void* data, Type type, size_t first, size_t columns, const int32_t* codes) {
    auto* out = static_cast<uint8_t*>(data) + first * size_of(type);
    if (size_of(type) == 1) return store_bytes<V>(codes, columns, out);
    write_columns(out, size_of(type), columns, [&](uint8_t* to) INLINE {
        if (type == Type::i16) return V::to_words(codes, reinterpret_cast<int16_t*>(to));
        __builtin_memcpy(to, codes, sizeof(int32_t) * tile_columns);
    });
}

template <class V>
void store_tile(const LinearRun& run, Type type, const Place& at, const Tile<V>& tile) {
    for (size_t i = 0; i < at.rows; ++i) {
        store_codes<V>(run.out, type, (at.row + i) * run.out_stride + at.channel, at.columns, tile.sum[i]);
    }
}

template <class V>
void to_sums(const AdditionPlan& p, const LinearRun& run, const Place& at, Tile<V>& tile) {
    Tile<V> addend;
    for (size_t i = 0; i < at.rows; ++i) {
        load_codes<V>(run.addend, p.a_type, (at.row + i) * run.addend_stride + at.channel, at.columns, addend.sum[i]);
    }
    for (size_t j = 0; j < tile_columns; j += V::lanes) {
        const size_t channel = at.channel + j;
        const auto a = V::factors(p.a, channel), b = V::factors(p.b, channel);
        const auto zero = V::load(p.a.zero + channel), zero_a = V::load(p.zero_a + channel);
        const auto zero_b = V::load(p.zero_b + channel);
        change_columns<V>(tile, at.rows, j, [&](auto code, size_t i) INLINE {
            const auto x = V::rescaled(V::sub(V::load(addend.sum[i] + j), zero_a), a);
            const auto centred = V::sub(code, zero_b);
            const auto y = p.b_is_identity ? centred : V::rescaled(centred, b);
            return V::clamped(V::add(V::add(x, zero), y), p.low, p.high);
        });
    }
}

bool has_one_table(const LookupTable& lookup, const Place& at) {
    for (size_t c = 1; c < at.columns; ++c) {
        if (lookup.table_of[at.channel + c] != lookup.table_of[at.channel]) return false;
    }
    return true;
}

// Bytes by way of tables.
template <class V>
void to_table(const LookupTable& lookup, const LinearRun& run, const Place& at, const Tile<V>& tile) {
    alignas(32) uint8_t codes[V::rows][tile_columns] = {};
    for (size_t i = 0; i < at.rows; ++i) V::to_bytes(tile.sum[i], codes[i]);
    const int32_t* table_of = lookup.table_of + at.channel;
    if (has_one_table(lookup, at)) {
        const uint8_t* table = lookup.by_byte + table_of[0] * 256;
        for (size_t i = 0; i < at.rows; i += V::bytes / tile_columns) {
            V::store(codes[i], V::look_up(table, V::load_bytes(codes[i])));
        }
    } else {
        for (size_t i = 0; i < at.rows; ++i) {
            for (size_t c = 0; c < at.columns; ++c) codes[i][c] = lookup.by_byte[table_of[c] * 256 + codes[i][c]];
        }
    }
    auto* out = static_cast<uint8_t*>(run.out) + at.row * run.out_stride + at.channel;
    for (size_t i = 0; i < at.rows; ++i, out += run.out_stride) {
        write_columns(out, 1, at.columns, [&](uint8_t* to) INLINE { __builtin_memcpy(to, codes[i], tile_columns); });
    }
}

template <class V>
void finish_tile(const LinearPlan& plan, const LinearRun& run, const Place& at, Tile<V>& tile) {
    to_codes<V>(plan.requantizer, at, tile);
    if (plan.has_lookup) return to_table<V>(plan.lookup, run, at, tile);
    if (plan.has_addition) to_sums<V>(plan.addition, run, at, tile);
    store_tile<V>(run, plan.has_addition ? plan.addition.type : plan.requantizer.type, at, tile);
}

// All that is rare: one code at a time.
template <class V>
void finish_codes(const LinearPlan& plan, const LinearRun& run, const Place& at, const Tile<V>& tile) {
    for (size_t i = 0; i < at.rows; ++i) {
        for (size_t c = 0; c < at.columns; ++c) finish(plan, run, tile.sum[i][c], at.row + i, at.channel + c);
    }
}

// The code of a narrow requantizer is less than 2^30 from its zero point, and so is a narrow addend: their sum fits.
bool can_finish_tiles(const LinearPlan& plan) {
    const AdditionPlan& p = plan.addition;
    if (plan.has_lookup && plan.lookup.by_byte == nullptr) return false;
    return plan.requantizer.narrow && (!plan.has_addition || (p.a.narrow && (p.b.narrow || p.b_is_identity)));
}

template <class V>
size_t linear_scratch(const LinearPlan& plan) {
    return plan.packed == nullptr ? scalar::linear_scratch(plan) : staged_rows<V>(plan) * plan.steps * 4;
}

template <class V>
void linear(const LinearPlan& plan, const LinearRun& run) {
    using Input = typename V::LinearInput;
    if (plan.packed == nullptr) return scalar::linear(plan, run);
    const bool by_tiles = can_finish_tiles(plan);
    auto* staged = static_cast<Input*>(run.scratch);
    const size_t stride = stride_of<V>(plan);
    in_pieces(0, run.rows, staged_rows<V>(plan), [&](size_t first, size_t rows) {
        for (size_t i = 0; i < rows; ++i) {
            const auto* x = static_cast<const uint8_t*>(run.x) + (first + i) * run.x_stride;
            const int32_t moved = moved_by<Input>(plan.x_type);
            Input* to = staged + i * stride;
            plan.x_type == Type::i8 ? stage(reinterpret_cast<const int8_t*>(x), plan.inputs, moved, to, stride)
                                    : stage(x, plan.inputs, moved, to, stride);
        }
        in_pieces(run.first, run.last, tile_columns, [&](size_t channel, size_t columns) {
            in_pieces(0, rows, V::rows, [&](size_t row, size_t count) {
                Tile<V> tile;
                const Place at = {first + row, channel, count, columns};
                multiply<V>(count, staged + row * stride, stride, plan.packed + channel * stride, stride,
                            plan.bias + channel, tile);
                by_tiles ? finish_tile<V>(plan, run, at, tile) : finish_codes<V>(plan, run, at, tile);
            });
        });
    });
}

}  // namespace
}  // namespace vitquant::kernels
