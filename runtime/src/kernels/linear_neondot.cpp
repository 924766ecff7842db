// Linear layers by dot products of signed bytes: tiles of 4 rows x 16 channels, everything after the products done
// while a tile is near.
#if defined(__aarch64__)

#include "neon.hpp"
#include "vectors_neon.hpp"

namespace vitquant::kernels::neon {
namespace {

constexpr size_t staged_bytes = 96 * 1024;  // of the inputs: a part of the second cache

size_t staged_rows(const LinearPlan& plan) {
    const size_t rows = staged_bytes / (plan.steps * 4) / tile_rows * tile_rows;
    return rows < tile_rows ? tile_rows : rows;
}

struct Place {
    size_t row, channel, rows, columns;
};

/// A row of bytes as int8; uint8 becomes that by taking off 128, which the bias makes good.
void stage(const uint8_t* x, Type type, size_t inputs, int8_t* to, size_t stride) {
    const uint8_t flip = type == Type::u8 ? 0x80 : 0;
    for (size_t k = 0; k < inputs; ++k) to[k] = static_cast<int8_t>(x[k] ^ flip);
    for (size_t k = inputs; k < stride; ++k) to[k] = 0;
}

/// Replaces each number of four columns by what `change` makes of it.
template <class Change>
inline void change_columns(Tile& tile, size_t rows, size_t column, Change change) {
    for (size_t i = 0; i < rows; ++i) {
        int32_t* at = tile.sum[i] + column;
        vst1q_s32(at, change(vld1q_s32(at), i));
    }
}

void to_codes(const Requantizer& r, const Place& at, Tile& tile) {
    for (size_t j = 0; j < tile_columns; j += 4) {
        const Factors f = factors(r, at.channel + j);
        const int32x4_t zero = vld1q_s32(r.zero + at.channel + j);
        change_columns(tile, at.rows, j, [&](int32x4_t x, size_t) {
            return clamped(vaddq_s32(rescaled(x, f), zero), r.low, r.high);
        });
    }
}

void load_codes(const void* data, Type type, size_t first, size_t columns, int32_t* to) {
    const auto* from = static_cast<const uint8_t*>(data) + first * size_of(type);
    alignas(16) uint8_t all[4 * tile_columns] = {};
    if (columns < tile_columns) {
        __builtin_memcpy(all, from, columns * size_of(type));
        from = all;
    }
    switch (type) {
        case Type::i8:
            widen(vmovl_s8(vld1_s8(reinterpret_cast<const int8_t*>(from))), to);
            widen(vmovl_s8(vld1_s8(reinterpret_cast<const int8_t*>(from) + 8)), to + 8);
            break;
        case Type::u8:
            widen(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from))), to);
            widen(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from + 8))), to + 8);
            break;
        case Type::i16:
            widen(vreinterpretq_s16_u8(vld1q_u8(from)), to);
            widen(vreinterpretq_s16_u8(vld1q_u8(from + 16)), to + 8);
            break;
        default: __builtin_memcpy(to, from, 4 * tile_columns);
    }
}

void store_codes(void* data, Type type, size_t first, size_t columns, const int32_t* codes) {
    auto* out = static_cast<uint8_t*>(data) + first * size_of(type);
    if (size_of(type) == 1) return store_bytes(out, to_bytes(codes), columns);
    write_columns(out, size_of(type), columns, [&](uint8_t* to) {
        if (type == Type::i32) return static_cast<void>(__builtin_memcpy(to, codes, 4 * tile_columns));
        for (size_t j = 0; j < tile_columns; j += 4) {
            vst1_u8(to + 2 * j, vreinterpret_u8_s16(vmovn_s32(vld1q_s32(codes + j))));
        }
    });
}

void store_tile(const LinearRun& run, Type type, const Place& at, const Tile& tile) {
    for (size_t i = 0; i < at.rows; ++i) {
        store_codes(run.out, type, (at.row + i) * run.out_stride + at.channel, at.columns, tile.sum[i]);
    }
}

void to_sums(const LinearPlan& plan, const LinearRun& run, const Place& at, Tile& tile) {
    const AdditionPlan& p = plan.addition;
    Tile addend;
    for (size_t i = 0; i < at.rows; ++i) {
        load_codes(run.addend, p.a_type, (at.row + i) * run.addend_stride + at.channel, at.columns, addend.sum[i]);
    }
    for (size_t j = 0; j < tile_columns; j += 4) {
        const size_t channel = at.channel + j;
        const Factors a = factors(p.a, channel), b = factors(p.b, channel);
        const int32x4_t zero_a = vld1q_s32(p.zero_a + channel), zero_b = vld1q_s32(p.zero_b + channel);
        const int32x4_t zero = vld1q_s32(p.a.zero + channel);
        change_columns(tile, at.rows, j, [&](int32x4_t code, size_t i) {
            const int32x4_t x = rescaled(vsubq_s32(vld1q_s32(addend.sum[i] + j), zero_a), a);
            const int32x4_t centred = vsubq_s32(code, zero_b);
            const int32x4_t y = p.b_is_identity ? centred : rescaled(centred, b);
            return clamped(vaddq_s32(vaddq_s32(x, zero), y), p.low, p.high);
        });
    }
}

bool has_one_table(const LookupTable& lookup, const Place& at) {
    for (size_t c = 1; c < at.columns; ++c) {
        if (lookup.table_of[at.channel + c] != lookup.table_of[at.channel]) return false;
    }
    return true;
}

/// Bytes by way of tables.
void to_table(const LookupTable& lookup, const LinearRun& run, const Place& at, const Tile& tile) {
    const int32_t* table_of = lookup.table_of + at.channel;
    const bool single = has_one_table(lookup, at);
    auto* out = static_cast<uint8_t*>(run.out) + at.row * run.out_stride + at.channel;
    for (size_t i = 0; i < at.rows; ++i, out += run.out_stride) {
        const uint8x16_t codes = to_bytes(tile.sum[i]);
        if (single) {
            store_bytes(out, look_up(lookup.by_byte + table_of[0] * 256, codes), at.columns);
        } else {
            uint8_t bytes[tile_columns];
            vst1q_u8(bytes, codes);
            for (size_t c = 0; c < at.columns; ++c) out[c] = lookup.by_byte[table_of[c] * 256 + bytes[c]];
        }
    }
}

bool is_quick(const LinearPlan& plan) {
    if (plan.has_lookup && plan.lookup.by_byte == nullptr) return false;
    return plan.requantizer.narrow && (!plan.has_addition || (plan.addition.a.narrow && plan.addition.b.narrow));
}

void finish_tile(const LinearPlan& plan, const LinearRun& run, const Place& at, Tile& tile) {
    to_codes(plan.requantizer, at, tile);
    if (plan.has_lookup) return to_table(plan.lookup, run, at, tile);
    if (plan.has_addition) to_sums(plan, run, at, tile);
    store_tile(run, plan.has_addition ? plan.addition.type : plan.requantizer.type, at, tile);
}

/// All that is rare: one code at a time.
void finish_codes(const LinearPlan& plan, const LinearRun& run, const Place& at, const Tile& tile) {
    for (size_t i = 0; i < at.rows; ++i) {
        for (size_t c = 0; c < at.columns; ++c) finish(plan, run, tile.sum[i][c], at.row + i, at.channel + c);
    }
}

}  // namespace

size_t linear_scratch(const LinearPlan& plan) {
    return plan.packed == nullptr ? scalar::linear_scratch(plan) : staged_rows(plan) * plan.steps * 4;
}

void linear(const LinearPlan& plan, const LinearRun& run) {
    if (plan.packed == nullptr) return scalar::linear(plan, run);
    const bool quick = is_quick(plan);
    auto* staged = static_cast<int8_t*>(run.scratch);
    const size_t stride = plan.steps * 4, chunk = staged_rows(plan);
    for (size_t first = 0; first < run.rows; first += chunk) {
        const size_t rows = run.rows - first < chunk ? run.rows - first : chunk;
        for (size_t i = 0; i < rows; ++i) {
            const auto* x = static_cast<const uint8_t*>(run.x) + (first + i) * run.x_stride;
            stage(x, plan.x_type, plan.inputs, staged + i * stride, stride);
        }
        for (size_t channel = run.first; channel < run.last; channel += tile_columns) {
            const size_t left = run.last - channel, columns = left < tile_columns ? left : tile_columns;
            for (size_t i = 0; i < rows; i += tile_rows) {
                Tile tile;
                const Place at = {first + i, channel, rows - i < tile_rows ? rows - i : tile_rows, columns};
                multiply_rows(at.rows, staged + i * stride, stride, plan.packed + channel * stride, stride,
                              plan.bias + channel, tile);
                quick ? finish_tile(plan, run, at, tile) : finish_codes(plan, run, at, tile);
            }
        }
    }
}

}  // namespace vitquant::kernels::neon

#endif
