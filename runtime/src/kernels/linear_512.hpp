// Linear layers: tiles of 6 rows x 64 channels, everything after the products done while a tile is in registers.
#pragma once

#include "vectors_512.hpp"

namespace vitquant::kernels {
namespace {

constexpr size_t staged_bytes = 128 * 1024;  // of the inputs, when they have to be copied: a part of the second cache

size_t staged_rows(const LinearPlan& plan) {
    const size_t rows = staged_bytes / (plan.steps * 4) / tile_rows * tile_rows;
    return rows < tile_rows ? tile_rows : rows;
}

bool needs_staging(const LinearPlan& plan) { return plan.x_type == Type::i8 || plan.inputs % 4 != 0; }

// The last steps of a tile. `row` and `channel` are where it begins, `columns` how many channels it has.
struct Place {
    size_t row, channel, columns;
};

template <class Reals, int rows, int vectors>
inline INLINE void requantize(const Requantizer& r, Tile<rows, vectors>& tile, size_t channel) {
    each<vectors>([&](auto j) INLINE {
        const Reals constants = Reals::of(r, channel + 16 * j);
        each<rows>([&](auto i) INLINE { tile.sum[i][j] = twice_rescaled(tile.sum[i][j], constants); });
    });
}

template <class Reals>
struct ToBytes {
    using Numbers = Reals;
    ByteRange range;

    explicit ToBytes(const LinearPlan& plan) : range(byte_range(plan.requantizer)) {}

    template <int rows, int vectors>
    inline INLINE void operator()(const LinearPlan& plan, const LinearRun& run, const Place& at,
                                  Tile<rows, vectors>& tile) const {
        requantize<Reals>(plan.requantizer, tile, at.channel);
        auto* out = static_cast<uint8_t*>(run.out) + at.row * run.out_stride + at.channel;
        const __mmask64 inside = first_bytes(at.columns);
        each<rows>([&](auto i) INLINE {
            _mm512_mask_storeu_epi8(out + i * run.out_stride, inside, halves_to_bytes(tile.sum[i], range));
        });
    }
};

// Bytes by way of a table.
template <class Reals>
struct ToLookup {
    using Numbers = Reals;
    ByteRange range;

    explicit ToLookup(const LinearPlan& plan) : range(byte_range(plan.requantizer)) {}

    template <int rows, int vectors>
    inline INLINE void operator()(const LinearPlan& plan, const LinearRun& run, const Place& at,
                                  Tile<rows, vectors>& tile) const {
        requantize<Reals>(plan.requantizer, tile, at.channel);
        auto* out = static_cast<uint8_t*>(run.out) + at.row * run.out_stride + at.channel;
        __m512i codes[rows];
        each<rows>([&](auto i) INLINE { codes[i] = halves_to_bytes(tile.sum[i], range); });
        // Channels of one table are neighbours: each run of them is looked up in all rows, and written by a mask.
        const int32_t* table_of = plan.lookup.table_of + at.channel;
        const bool single = plan.lookup.single[at.channel / channel_block] != 0;
        for (size_t begin = 0, end = 0; begin < at.columns; begin = end) {
            end = single ? at.columns : begin + 1;
            while (end < at.columns && table_of[end] == table_of[begin]) ++end;
            const ByteTable table = load_table(plan.lookup.by_byte + table_of[begin] * 256);
            const __mmask64 run_mask = first_bytes(end) & ~first_bytes(begin);
            each<rows>([&](auto i) INLINE {
                _mm512_mask_storeu_epi8(out + i * run.out_stride, run_mask, look_up(table, codes[i]));
            });
        }
    }
};

// The addend of sixteen channels, at the scale of the sum and with its zero point.
template <class Reals>
struct ResidualAddend {
    using Code = int16_t;
    Reals constants;
    __m512i zero;

    ResidualAddend(const AdditionPlan& p, size_t channel)
        : constants(Reals::of(p.a, channel)), zero(Reals::prepared(_mm512_loadu_si512(p.zero_a + channel))) {}

    inline INLINE __m512i operator()(const int16_t* a, __mmask16 inside) const {
        const __m512i x = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(inside, a));
        return _mm512_srai_epi32(twice_rescaled(_mm512_sub_epi32(x, zero), constants), 1);
    }
};

template <class Reals>
struct TableAddend {
    using Code = int32_t;

    TableAddend(const AdditionPlan&, size_t) {}

    inline INLINE __m512i operator()(const int32_t* a, __mmask16 inside) const {
        return _mm512_maskz_loadu_epi32(inside, a);
    }
};

// The residual stream: sums in 16 bits.
template <class Reals, template <class> class Addend>
struct ToAddition {
    using Numbers = Reals;

    explicit ToAddition(const LinearPlan&) {}

    template <int rows, int vectors>
    inline INLINE void operator()(const LinearPlan& plan, const LinearRun& run, const Place& at,
                                  Tile<rows, vectors>& tile) const {
        using Code = typename Addend<Reals>::Code;
        requantize<Reals>(plan.requantizer, tile, at.channel);
        const AdditionPlan& p = plan.addition;
        const bool free = p.b_is_free;
        const __m512i low_b = _mm512_set1_epi32(plan.requantizer.low),
                      high_b = _mm512_set1_epi32(plan.requantizer.high);
        const __m512i low = _mm512_set1_epi32(p.low), high = _mm512_set1_epi32(p.high);
        each<vectors>([&](auto j) INLINE {
            const size_t channel = at.channel + 16 * j;
            if (at.columns <= 16 * j) return;
            const Addend<Reals> addend(p, channel);
            const __m512i zero_b = _mm512_loadu_si512(p.zero_b + channel);
            const __mmask16 inside = first_words(at.columns - 16 * j);
            const auto* a = static_cast<const Code*>(run.addend) + at.row * run.addend_stride + channel;
            auto* out = static_cast<int16_t*>(run.out) + at.row * run.out_stride + channel;
            each<rows>([&](auto i) INLINE {
                __m512i b = _mm512_srai_epi32(tile.sum[i][j], 1);
                if (!free) b = _mm512_sub_epi32(_mm512_min_epi32(_mm512_max_epi32(b, low_b), high_b), zero_b);
                const __m512i sum = _mm512_add_epi32(addend(a + i * run.addend_stride, inside), b);
                const __m512i codes = _mm512_min_epi32(_mm512_max_epi32(sum, low), high);
                _mm256_mask_storeu_epi16(out + i * run.out_stride, inside, _mm512_cvtepi32_epi16(codes));
            });
        });
    }
};

// All that is rare: one code at a time.
struct ToAnything {
    using Numbers = Floats;

    explicit ToAnything(const LinearPlan&) {}

    template <int rows, int vectors>
    void operator()(const LinearPlan& plan, const LinearRun& run, const Place& at, Tile<rows, vectors>& tile) const {
        alignas(64) int32_t sums[rows][16 * vectors];
        each<rows>([&](auto i) INLINE {
            each<vectors>([&](auto j) INLINE { _mm512_store_si512(sums[i] + 16 * j, tile.sum[i][j]); });
        });
        for (size_t i = 0; i < rows; ++i) {
            for (size_t c = 0; c < at.columns; ++c) finish(plan, run, sums[i][c], at.row + i, at.channel + c);
        }
    }
};

template <class Finish>
void multiply_rows(const LinearPlan& plan, const LinearRun& run, const Finish& finish, const uint8_t* x,
                   size_t x_stride, size_t first_row, size_t rows) {
    in_pieces(run.first, run.last, channel_block, [&](size_t channel, size_t columns) {
        alignas(64) int32_t start[channel_block];
        for (size_t j = 0; j < channel_block; j += 16) {
            _mm512_store_si512(start + j, Finish::Numbers::prepared(_mm512_loadu_si512(plan.bias + channel + j)));
        }
        const int8_t* w = plan.packed + channel * plan.steps * 4;
        by_tiles(rows, [&](auto count, size_t row) {
            const Place at{first_row + row, channel, columns};
            multiply<count, 4>({x + row * x_stride, x_stride, w, plan.steps, start},
                               [&](auto& tile) INLINE { finish(plan, run, at, tile); });
        });
    });
}

template <class Finish>
void run_with(const LinearPlan& plan, const LinearRun& run) {
    const Finish finish(plan);
    const auto* x = static_cast<const uint8_t*>(run.x);
    if (!needs_staging(plan)) return multiply_rows(plan, run, finish, x, run.x_stride, 0, run.rows);
    auto* staged = static_cast<uint8_t*>(run.scratch);
    const size_t stride = plan.steps * 4;
    in_pieces(0, run.rows, staged_rows(plan), [&](size_t row, size_t rows) {
        stage(x + row * run.x_stride, run.x_stride, rows, plan.inputs, plan.x_type == Type::i8 ? 0x80 : 0, staged,
              stride);
        multiply_rows(plan, run, finish, staged, stride, row, rows);
    });
}

bool is_byte(Type type) { return type == Type::i8 || type == Type::u8; }

template <class Reals>
void run_narrow(const LinearPlan& plan, const LinearRun& run) {
    const Requantizer& r = plan.requantizer;
    const AdditionPlan& p = plan.addition;
    if (plan.has_addition && p.b_is_identity && p.type == Type::i16) {
        if (p.a_type == Type::i16 && p.a.narrow) return run_with<ToAddition<Reals, ResidualAddend>>(plan, run);
        if (p.a_type == Type::i32 && p.a_is_added_as_is) return run_with<ToAddition<Reals, TableAddend>>(plan, run);
    }
    if (plan.has_addition || !is_byte(r.type)) return run_with<ToAnything>(plan, run);
    if (!plan.has_lookup) return run_with<ToBytes<Reals>>(plan, run);
    if (plan.lookup.by_byte != nullptr) return run_with<ToLookup<Reals>>(plan, run);
    run_with<ToAnything>(plan, run);
}

size_t linear_scratch_512(const LinearPlan& plan) {
    if (plan.packed == nullptr) return scalar::linear_scratch(plan);
    return needs_staging(plan) ? staged_rows(plan) * plan.steps * 4 : 0;
}

void linear_512(const LinearPlan& plan, const LinearRun& run) {
    if (plan.packed == nullptr) return scalar::linear(plan, run);
    if (!plan.requantizer.narrow) return run_with<ToAnything>(plan, run);
    const AdditionPlan& p = plan.addition;
    const bool floats = plan.requantizer.float_scale != nullptr &&
                        (!plan.has_addition || p.a.float_scale != nullptr || p.a_is_added_as_is);
    floats ? run_narrow<Floats>(plan, run) : run_narrow<Doubles>(plan, run);
}

}  // namespace
}  // namespace vitquant::kernels
