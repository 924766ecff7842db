// Linear layers: tiles of 6 rows x 64 channels, everything after the products done while a tile is in registers.
#if defined(__x86_64__)

#include "avx512vnni.hpp"
#include "vectors_avx512vnni.hpp"

namespace vitquant::kernels::vnni512 {
namespace {

constexpr size_t staged_bytes = 128 * 1024;  // of the inputs, when they have to be copied: a part of the second cache

size_t staged_rows(const LinearPlan& plan) {
    const size_t rows = staged_bytes / (plan.steps * 4) / tile_rows * tile_rows;
    return rows < tile_rows ? tile_rows : rows;
}

bool needs_staging(const LinearPlan& plan) { return plan.x_type == Type::i8 || plan.inputs % 4 != 0; }

/// The last steps of a tile. `row` and `channel` are where it begins, `columns` how many channels it has.
struct Place {
    size_t row, channel, columns;
};

template <int rows>
inline __attribute__((always_inline)) void requantized(const Requantizer& r, Tile<rows>& tile, size_t channel) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const Affine affine = load_affine(r, channel + 16 * static_cast<size_t>(j));
#pragma GCC unroll 6
        for (int i = 0; i < rows; ++i) tile.sum[i][j] = twice_rescaled(tile.sum[i][j], affine);
    }
}

struct ToBytes {
    ByteRange range;

    explicit ToBytes(const LinearPlan& plan)
        : range(byte_range(plan.requantizer.type, plan.requantizer.low, plan.requantizer.high)) {}

    template <int rows>
    inline __attribute__((always_inline)) void operator()(const LinearPlan& plan, const LinearRun& run, const Place& at,
                                                          Tile<rows>& tile) const {
        requantized(plan.requantizer, tile, at.channel);
        auto* out = static_cast<uint8_t*>(run.out) + at.row * run.out_stride + at.channel;
#pragma GCC unroll 6
        for (int i = 0; i < rows; ++i, out += run.out_stride) {
            _mm512_mask_storeu_epi8(out, first_bytes(at.columns), halves_to_bytes(tile.sum[i], range));
        }
    }
};

/// Bytes by way of a table.
struct ToLookup {
    ByteRange range;

    explicit ToLookup(const LinearPlan& plan)
        : range(byte_range(plan.requantizer.type, plan.requantizer.low, plan.requantizer.high)) {}

    template <int rows>
    inline __attribute__((always_inline)) void operator()(const LinearPlan& plan, const LinearRun& run, const Place& at,
                                                          Tile<rows>& tile) const {
        requantized(plan.requantizer, tile, at.channel);
        auto* out = static_cast<uint8_t*>(run.out) + at.row * run.out_stride + at.channel;
        __m512i codes[rows];
#pragma GCC unroll 6
        for (int i = 0; i < rows; ++i) codes[i] = halves_to_bytes(tile.sum[i], range);
        // Channels of one table are neighbours: each run of them is looked up in all rows, and written by a mask.
        const int32_t* table_of = plan.lookup.table_of + at.channel;
        const bool single = plan.lookup.single[at.channel / channel_block] != 0;
        for (size_t begin = 0, end = 0; begin < at.columns; begin = end) {
            end = single ? at.columns : begin + 1;
            while (end < at.columns && table_of[end] == table_of[begin]) ++end;
            const ByteTable table = load_table(plan.lookup.by_byte + table_of[begin] * 256);
            const __mmask64 run_mask = first_bytes(end) & ~first_bytes(begin);
#pragma GCC unroll 6
            for (int i = 0; i < rows; ++i) {
                _mm512_mask_storeu_epi8(out + static_cast<size_t>(i) * run.out_stride, run_mask,
                                        look_up(table, codes[i]));
            }
        }
    }
};

/// The addend of sixteen channels, at the scale of the sum and with its zero point.
struct ResidualAddend {
    using Code = int16_t;
    Affine affine;
    __m512i zero;

    ResidualAddend(const AdditionPlan& p, size_t channel)
        : affine(load_affine(p.a, channel)), zero(flip(_mm512_loadu_si512(p.zero_a + channel))) {}

    inline __attribute__((always_inline)) __m512i operator()(const int16_t* a, __mmask16 inside) const {
        const __m512i x = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(inside, a));
        return _mm512_srai_epi32(twice_rescaled(_mm512_sub_epi32(x, zero), affine), 1);
    }
};

struct TableAddend {
    using Code = int32_t;

    TableAddend(const AdditionPlan&, size_t) {}

    inline __attribute__((always_inline)) __m512i operator()(const int32_t* a, __mmask16 inside) const {
        return _mm512_maskz_loadu_epi32(inside, a);
    }
};

/// The residual stream: sums in 16 bits.
template <class Addend>
struct ToAddition {
    explicit ToAddition(const LinearPlan&) {}

    template <int rows>
    inline __attribute__((always_inline)) void operator()(const LinearPlan& plan, const LinearRun& run, const Place& at,
                                                          Tile<rows>& tile) const {
        using Code = typename Addend::Code;
        requantized(plan.requantizer, tile, at.channel);
        const AdditionPlan& p = plan.addition;
        const bool free = p.b_is_free;
        const __m512i low_b = _mm512_set1_epi32(plan.requantizer.low),
                      high_b = _mm512_set1_epi32(plan.requantizer.high);
        const __m512i low = _mm512_set1_epi32(p.low), high = _mm512_set1_epi32(p.high);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) {
            const size_t channel = at.channel + 16 * j;
            if (at.columns <= 16 * j) return;
            const Addend addend(p, channel);
            const __m512i zero_b = _mm512_loadu_si512(p.zero_b + channel);
            const __mmask16 inside = first_words(at.columns - 16 * j);
            const auto* a = static_cast<const Code*>(run.addend) + at.row * run.addend_stride + channel;
            auto* out = static_cast<int16_t*>(run.out) + at.row * run.out_stride + channel;
#pragma GCC unroll 6
            for (int i = 0; i < rows; ++i, a += run.addend_stride, out += run.out_stride) {
                __m512i b = _mm512_srai_epi32(tile.sum[i][j], 1);
                if (!free) b = _mm512_sub_epi32(_mm512_min_epi32(_mm512_max_epi32(b, low_b), high_b), zero_b);
                const __m512i sum = _mm512_add_epi32(addend(a, inside), b);
                const __m512i codes = _mm512_min_epi32(_mm512_max_epi32(sum, low), high);
                _mm256_mask_storeu_epi16(out, inside, _mm512_cvtepi32_epi16(codes));
            }
        }
    }
};

/// All that is rare: one code at a time.
struct ToAnything {
    explicit ToAnything(const LinearPlan&) {}

    template <int rows>
    void operator()(const LinearPlan& plan, const LinearRun& run, const Place& at, Tile<rows>& tile) const {
        for (int i = 0; i < rows; ++i) {
            alignas(64) int32_t sums[64];
            for (int j = 0; j < 4; ++j) _mm512_store_si512(sums + 16 * j, flip(tile.sum[i][j]));
            for (size_t c = 0; c < at.columns; ++c) {
                finish(plan, run, sums[c], at.row + static_cast<size_t>(i), at.channel + c);
            }
        }
    }
};

template <int rows, class Finish>
void one_tile(const LinearPlan& plan, const LinearRun& run, const Finish& finish, const Place& at, const uint8_t* x,
              size_t x_stride, const int32_t* start) {
    const int8_t* w = plan.packed + at.channel * plan.steps * 4;
    Tile<rows> tile;
    multiply_columns(x, x_stride, w, plan.steps, start, at.columns, tile);
    finish(plan, run, at, tile);
}

template <class Finish>
void multiply_rows(const LinearPlan& plan, const LinearRun& run, const Finish& finish, const uint8_t* x,
                   size_t x_stride, size_t first_row, size_t rows) {
    for (size_t channel = run.first; channel < run.last; channel += channel_block) {
        const size_t left = run.last - channel, columns = left < channel_block ? left : channel_block;
        alignas(64) int32_t start[64];  // all sums are kept xor 2^31, as requantization wants them
        for (size_t j = 0; j < 64; j += 16) {
            _mm512_store_si512(start + j, flip(_mm512_loadu_si512(plan.bias + channel + j)));
        }
        size_t i = 0;
        for (; i + tile_rows <= rows; i += tile_rows) {
            one_tile<tile_rows>(plan, run, finish, {first_row + i, channel, columns}, x + i * x_stride, x_stride,
                                start);
        }
        const Place at{first_row + i, channel, columns};
        const uint8_t* rest = x + i * x_stride;
        switch (rows - i) {
            case 1: one_tile<1>(plan, run, finish, at, rest, x_stride, start); break;
            case 2: one_tile<2>(plan, run, finish, at, rest, x_stride, start); break;
            case 3: one_tile<3>(plan, run, finish, at, rest, x_stride, start); break;
            case 4: one_tile<4>(plan, run, finish, at, rest, x_stride, start); break;
            case 5: one_tile<5>(plan, run, finish, at, rest, x_stride, start); break;
            default: break;
        }
    }
}

template <class Finish>
void run_with(const LinearPlan& plan, const LinearRun& run) {
    const Finish finish(plan);
    const auto* x = static_cast<const uint8_t*>(run.x);
    if (!needs_staging(plan)) return multiply_rows(plan, run, finish, x, run.x_stride, 0, run.rows);
    auto* staged = static_cast<uint8_t*>(run.scratch);
    const size_t stride = plan.steps * 4, chunk = staged_rows(plan);
    for (size_t row = 0; row < run.rows; row += chunk) {
        const size_t rows = run.rows - row < chunk ? run.rows - row : chunk;
        stage(x + row * run.x_stride, run.x_stride, rows, plan.inputs, plan.x_type == Type::i8 ? 0x80 : 0, staged,
              stride);
        multiply_rows(plan, run, finish, staged, stride, row, rows);
    }
}

bool is_byte(Type type) { return type == Type::i8 || type == Type::u8; }

}  // namespace

size_t linear_scratch(const LinearPlan& plan) {
    if (plan.packed == nullptr) return plain::linear_scratch(plan);
    return needs_staging(plan) ? staged_rows(plan) * plan.steps * 4 : 0;
}

void linear(const LinearPlan& plan, const LinearRun& run) {
    const Requantizer& r = plan.requantizer;
    if (plan.packed == nullptr) return plain::linear(plan, run);
    if (plan.has_addition && r.narrow && plan.addition.b_is_identity && plan.addition.type == Type::i16) {
        const AdditionPlan& p = plan.addition;
        if (p.a_type == Type::i16 && p.a.narrow) return run_with<ToAddition<ResidualAddend>>(plan, run);
        if (p.a_type == Type::i32 && p.a_is_added_as_is) return run_with<ToAddition<TableAddend>>(plan, run);
    }
    if (plan.has_addition || !r.narrow || !is_byte(r.type)) return run_with<ToAnything>(plan, run);
    if (!plan.has_lookup) return run_with<ToBytes>(plan, run);
    if (plan.lookup.by_byte != nullptr) return run_with<ToLookup>(plan, run);
    run_with<ToAnything>(plan, run);
}

}  // namespace vitquant::kernels::vnni512

#endif
