// Linear layers in vectors of 256 bits: tiles of 6 rows x 16 channels, everything after the products done while a tile
// is near. How products are made is the argument `Products`:
//   Input, together        the type of staged inputs, and how many of a row's inputs meet in one 32-bit number
//   stage(...)             a row of bytes as such inputs
//   multiply(...)          a tile
#pragma once

#include "vectors_avx2.hpp"

namespace vitquant::kernels {
namespace {

constexpr size_t staged_bytes = 96 * 1024;  // of the inputs: a part of the second cache

size_t staged_rows(const LinearPlan& plan) {
    const size_t rows = staged_bytes / (plan.steps * 4) / tile_rows * tile_rows;
    return rows < tile_rows ? tile_rows : rows;
}

struct Place {
    size_t row, channel, rows, columns;
};

inline __m128i tile_codes(const LinearPlan& plan, const Place& at, const int32_t* sums) {
    return to_bytes(to_codes(load8(sums), plan.requantizer, at.channel),
                    to_codes(load8(sums + 8), plan.requantizer, at.channel + 8));
}

void to_codes_of_bytes(const LinearPlan& plan, const LinearRun& run, const Place& at, const Tile& tile) {
    auto* out = static_cast<uint8_t*>(run.out) + at.row * run.out_stride + at.channel;
    for (size_t i = 0; i < at.rows; ++i, out += run.out_stride) {
        store_bytes(out, tile_codes(plan, at, tile.sum[i]), at.columns);
    }
}

bool has_one_table(const LookupTable& lookup, const Place& at) {
    for (size_t c = 1; c < at.columns; ++c) {
        if (lookup.table_of[at.channel + c] != lookup.table_of[at.channel]) return false;
    }
    return true;
}

/// Bytes by way of tables.
void to_table(const LinearPlan& plan, const LinearRun& run, const Place& at, const Tile& tile) {
    alignas(32) uint8_t codes[tile_rows][tile_columns] = {};
    for (size_t i = 0; i < at.rows; ++i) {
        _mm_store_si128(reinterpret_cast<__m128i*>(codes[i]), tile_codes(plan, at, tile.sum[i]));
    }
    const int32_t* table_of = plan.lookup.table_of + at.channel;
    if (has_one_table(plan.lookup, at)) {
        for (size_t i = 0; i < at.rows; i += 2) {
            auto* two = reinterpret_cast<__m256i*>(codes[i]);
            _mm256_store_si256(two, look_up(plan.lookup.by_byte + table_of[0] * 256, _mm256_load_si256(two)));
        }
    } else {
        for (size_t i = 0; i < at.rows; ++i) {
            for (size_t c = 0; c < at.columns; ++c) codes[i][c] = plan.lookup.by_byte[table_of[c] * 256 + codes[i][c]];
        }
    }
    auto* out = static_cast<uint8_t*>(run.out) + at.row * run.out_stride + at.channel;
    for (size_t i = 0; i < at.rows; ++i, out += run.out_stride) {
        store_bytes(out, _mm_load_si128(reinterpret_cast<const __m128i*>(codes[i])), at.columns);
    }
}

/// The residual stream: both addends and the sum in 16 bits.
void to_addition(const LinearPlan& plan, const LinearRun& run, const Place& at, const Tile& tile) {
    const AdditionPlan& p = plan.addition;
    for (size_t i = 0; i < at.rows; ++i) {
        const auto* a = static_cast<const int16_t*>(run.addend) + (at.row + i) * run.addend_stride + at.channel;
        auto* out = static_cast<int16_t*>(run.out) + (at.row + i) * run.out_stride + at.channel;
        alignas(32) int16_t addend[16] = {}, result[16];
        __builtin_memcpy(addend, a, at.columns * 2);
        __m256i sums[2];
        for (size_t j = 0; j < 2; ++j) {
            const size_t channel = at.channel + 8 * j;
            const __m256i x = _mm256_cvtepi16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(addend + 8 * j)));
            const __m256i y =
                rescaled(_mm256_sub_epi32(x, load8(p.zero_a + channel)), p.a.scale + channel, p.a.start + channel);
            const __m256i b = to_codes(load8(tile.sum[i] + 8 * j), plan.requantizer, channel);
            const __m256i centred =
                _mm256_add_epi32(_mm256_sub_epi32(b, load8(p.zero_b + channel)), load8(p.a.zero + channel));
            sums[j] = clamped(_mm256_add_epi32(y, centred), p.low, p.high);
        }
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(sums[0], sums[1]), 0xd8);
        _mm256_store_si256(reinterpret_cast<__m256i*>(result), words);
        __builtin_memcpy(out, result, at.columns * 2);
    }
}

/// All that is rare: one code at a time.
void to_anything(const LinearPlan& plan, const LinearRun& run, const Place& at, const Tile& tile) {
    for (size_t i = 0; i < at.rows; ++i) {
        for (size_t c = 0; c < at.columns; ++c) finish(plan, run, tile.sum[i][c], at.row + i, at.channel + c);
    }
}

using Finish = void (*)(const LinearPlan&, const LinearRun&, const Place&, const Tile&);

bool is_byte(Type type) { return type == Type::i8 || type == Type::u8; }

Finish last_step(const LinearPlan& plan) {
    const AdditionPlan& p = plan.addition;
    if (!plan.requantizer.narrow) return to_anything;
    if (plan.has_addition) {
        const bool quick = p.b_is_identity && p.a.narrow && p.a_type == Type::i16 && p.type == Type::i16;
        return quick ? to_addition : to_anything;
    }
    if (!is_byte(plan.requantizer.type)) return to_anything;
    if (!plan.has_lookup) return to_codes_of_bytes;
    return plan.lookup.by_byte != nullptr ? to_table : to_anything;
}

template <class Products>
void run_linear(const LinearPlan& plan, const LinearRun& run) {
    const Finish finish = last_step(plan);
    auto* staged = static_cast<typename Products::Input*>(run.scratch);
    const size_t stride = plan.steps * Products::together, chunk = staged_rows(plan);
    for (size_t first = 0; first < run.rows; first += chunk) {
        const size_t rows = run.rows - first < chunk ? run.rows - first : chunk;
        for (size_t i = 0; i < rows; ++i) {
            const auto* x = static_cast<const uint8_t*>(run.x) + (first + i) * run.x_stride;
            Products::stage(x, plan.x_type, plan.inputs, staged + i * stride, stride);
        }
        for (size_t channel = run.first; channel < run.last; channel += tile_columns) {
            const size_t left = run.last - channel, columns = left < tile_columns ? left : tile_columns;
            const int8_t* w = plan.packed + channel * stride;
            for (size_t i = 0; i < rows; i += tile_rows) {
                Tile tile;
                const Place at = {first + i, channel, rows - i < tile_rows ? rows - i : tile_rows, columns};
                Products::multiply(at.rows, staged + i * stride, stride, w, plan.steps, plan.bias + channel, tile);
                finish(plan, run, at, tile);
            }
        }
    }
}

}  // namespace
}  // namespace vitquant::kernels
