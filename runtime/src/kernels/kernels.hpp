// The arithmetic of integer programs that instruction sets do differently: one table of functions for each of them, all
// giving the same integers.
//
// Life of a kernel: `make_*` turns the constants of an operation into a plan, once, at load (it allocates and packs);
// the function of the same name without `make_` runs it on a range of rows (or heads), any number of times, from any
// number of threads at once. Running allocates nothing: the caller passes scratch memory, one for each thread, of
// `*_scratch` bytes, aligned to 64. A plan is run by the table that made it.
//
// Arguments are trusted: what `vitquant.program.validate` proves of a program (ranges, lengths, accumulators that fit
// 32 bits) must have been checked before. Inputs and outputs must not overlap, except that a residual or an addend may
// be the output itself. Strides are in elements, from one row to the next.
//
// `rescale(x, m, n)` is `(x * m + 2^(n-1)) >> n` in 64 bits, no half where n = 0.
//
// Build: each file is compiled with flags by its name (and -O3 -std=c++17):
//   avx512vnni.cpp  -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
//   avx512vbmi.cpp  the same and -mavx512vbmi
//   avxvnni.cpp     -mavx2 -mfma -mavxvnni
//   avx2.cpp        -mavx2 -mfma
//   neondot.cpp     -march=armv8.2-a+dotprod
//   all others      none.
// Files named for an instruction set of another architecture compile to nothing. They include no header with inline
// functions that other files share (no containers), or the linker might keep their copy for a machine that lacks the
// instructions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace vitquant::kernels {

// How codes are stored.
enum class Type : uint8_t { i8, u8, i16, i32 };

inline constexpr size_t size_of(Type type) { return type == Type::i32 ? 4 : type == Type::i16 ? 2 : 1; }

// A value's codes: they lie in [low, high]; `zero_point` has `zero_count` elements, each for a run of neighbouring
// channels (or heads) of equal length.
struct Grid {
    Type type;
    int32_t low, high;
    const int32_t* zero_point;
    size_t zero_count;
};

// Multipliers and shifts: one, or one for each channel (or head).
struct Rescale {
    const int32_t* multiplier;
    const uint8_t* shift;
    size_t count;
};

// `tables[table_of[channel]][code - low of the input]`. The tables hold codes of type `out`.
struct LookupTables {
    const void* tables;
    size_t table_count;
    const int32_t* table_of;  // one for each channel
    Type out;
};

// `clamp(zero + rescale(a - zero_a) + rescale(b - zero_b))`; b is what a linear layer makes.
struct Addition {
    Grid a;
    Rescale rescale_a, rescale_b;
    Grid out;
};

// ---- Linear: out = clamp(zero + rescale(bias + x W^T)), then, if asked for, a look-up or an addition ----

struct LinearSpec {
    size_t inputs, outputs;
    const void* weight;  // [outputs, inputs]
    Type weight_type;    // i8 is quick, with an input of i8 or u8; i16 and i32 are right
    const int32_t* bias;
    Grid x;  // its zero point is in the bias already, and not read
    Rescale rescale;
    Grid out;                              // of the linear layer itself
    const LookupTables* lookup = nullptr;  // at most one of these two
    const Addition* addition = nullptr;
};

struct LinearRun {
    size_t rows;
    const void* x;
    size_t x_stride;
    const void* addend;  // a of the addition, or null
    size_t addend_stride;
    void* out;  // of the type that the last step makes
    size_t out_stride;
    // A part of the channels: [first, last), first a multiple of 64; last one too, or the number of outputs.
    // `addend` and `out` still point at channel 0.
    size_t first, last;
    void* scratch;
};

struct LinearPlan;

// ---- LayerNorm ----

struct LayerNormSpec {
    size_t channels;
    Grid x;  // its zero point is not read
    const int64_t* gain;
    const int64_t* offset;
    const uint8_t* shift;
    int64_t epsilon;
    int headroom;
    Grid out;
};

struct LayerNormPlan;

// ---- Requantization: out = clamp(zero + rescale(x)), of numbers in 32 bits ----

struct RequantizeSpec {
    size_t channels;
    int64_t limit;  // of the magnitude of x, below 2^31
    Rescale rescale;
    Grid out;
};

struct RequantizePlan;

// ---- Attention: scores, softmax and the product with V; the matrix of queries and keys never exists ----

enum class Softmax : uint8_t { row, diffusion, uniform, log2 };

inline constexpr int diffusion_bits = 8;  // of a fraction that its exponentials have

// What is added to the scores once they are rescaled: [heads, rows, keys], of magnitudes up to 2^30. `heads` divides
// those of the attention, query n has row `n mod rows`, and there is one key for all, or one per key.
struct ScoreTable {
    const int32_t* addends;
    size_t heads, rows, keys;
};

struct AttentionSpec {
    size_t keys, channels, heads;  // any number of queries
    Grid q, k, v;
    Rescale scores_rescale;  // 1 or heads
    Grid scores;             // zero points along the heads
    ScoreTable score_table;
    Softmax softmax;
    const int32_t* table;     // [table_count, scores.high - scores.low + 1]
    size_t table_count;       // divides heads
    Rescale weights_rescale;  // uniform only: 1 or heads
    int last;                 // log2 only
    Grid weights;             // what the softmax makes; zero points along the heads
    bool normalize;
    int reciprocal_bits, fraction_bits;
    Rescale rescale;  // 1 or channels
    Grid out;
};

// One image. Rows [first_row, last_row) of the heads [first_head, last_head) of `out` are written; `q` and `out` point
// at row 0, channel 0, and `k` and `v` at the first of the keys. Prefer ranges of heads: K and V of a head are packed
// anew in every call that touches it.
struct AttentionRun {
    const void *q, *k, *v;
    size_t q_stride, k_stride, v_stride;
    void* out;
    size_t out_stride;
    size_t first_head, last_head, first_row, last_row;
    void* scratch;
};

struct AttentionPlan;

struct Deleter {
    void operator()(LinearPlan*) const;
    void operator()(LayerNormPlan*) const;
    void operator()(RequantizePlan*) const;
    void operator()(AttentionPlan*) const;
};

template <class Plan>
using Owned = std::unique_ptr<Plan, Deleter>;

struct Kernels {
    const char* name;

    Owned<LinearPlan> (*make_linear)(const LinearSpec&);
    size_t (*linear_scratch)(const LinearPlan&);
    void (*linear)(const LinearPlan&, const LinearRun&);

    Owned<LayerNormPlan> (*make_layernorm)(const LayerNormSpec&);
    void (*layernorm)(const LayerNormPlan&, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride);

    Owned<RequantizePlan> (*make_requantize)(const RequantizeSpec&);
    void (*requantize)(const RequantizePlan&, size_t rows, const int32_t* x, size_t x_stride, void* out,
                       size_t out_stride);

    Owned<AttentionPlan> (*make_attention)(const AttentionSpec&);
    size_t (*attention_scratch)(const AttentionPlan&);
    void (*attention)(const AttentionPlan&, const AttentionRun&);
};

const Kernels* portable();
// Null where this build or this machine lacks the instructions.
const Kernels* avx2();
const Kernels* avxvnni();
const Kernels* avx512vnni();
const Kernels* avx512vbmi();
const Kernels* neondot();

// The table of this name ("portable", "avx2", "avxvnni", "avx512vnni", "avx512vbmi", "neondot"), or the quickest that
// the machine has where `forced` is null or empty. Null where there is no such table, or the machine lacks its
// instructions.
const Kernels* select(const char* forced);

}  // namespace vitquant::kernels
