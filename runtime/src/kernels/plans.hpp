// What the kernels keep of an operation's constants. Plain pointers, so that files compiled for one instruction set
// call no container's code; the memory behind them belongs to the plan's arena.
#pragma once

#include "kernels.hpp"

namespace vitquant::kernels {

// How a plan's constants are laid out.
enum class Layout : uint8_t { portable, avx2, avxvnni, avx512vnni, neondot };

// Memory that lives as long as its plan: blocks aligned to 64 bytes, set to zero.
class Arena {
public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    void* block(size_t bytes);

    template <class T>
    T* array(size_t count) {
        return static_cast<T*>(block(count * sizeof(T)));
    }

private:
    struct Block;
    Block* last_ = nullptr;
};

// Weights are packed, and constants of channels padded, in blocks of this many channels.
inline constexpr size_t channel_block = 64;

// In a double, 1.5 * 2^51 + y leaves y in halves in the low 32 bits, for |y| < 2^30.
inline constexpr double fixed_point = 1.5 * 2251799813685248.0;
// In a float, 1.5 * 2^22 + y does, for |y| < 2^21.
inline constexpr float float_fixed_point = 1.5F * 4194304.0F;

// `clamp(zero + rescale(x))`, with the constants of each channel.
struct Requantizer {
    const int32_t* multiplier;
    const int32_t* shift;
    const int32_t* zero;
    int32_t low, high;
    Type type;
    // The same for vectors of doubles, where multiplier * 2^-shift, and its product with 32 bits, are exact. The layout
    // for AVX-512 has the channels of each sixteen in the order in which halves of vectors are interleaved.
    const double* scale;
    const double* start;  // AVX-512: fixed_point + zero + the half, less 128 for uint8; else the half alone
    bool narrow;          // zero + rescale(x) stays below 2^30 before it is clamped
    // AVX-512, all channels in order: the same for floats, to which x must be exact. Else null.
    const float* float_scale;
    const float* float_start;
};

struct AdditionPlan {
    Type a_type;
    const int32_t* zero_a;
    Requantizer a;  // without clamping; its zero is the sum's
    Requantizer b;  // without zero or clamping
    bool b_is_identity;
    bool b_is_free;         // of zero points and of clamping, which change nothing
    bool a_is_added_as_is;  // rescaled by 1, without zero points, as the tables of embeddings are
    const int32_t* zero_b;
    int32_t low, high;
    Type type;
};

struct LookupTable {
    const uint8_t* bytes;  // elements of `type`; [table][code - low]
    const int32_t* table_of;
    size_t codes;
    int32_t low;
    Type type;
    // For 8-bit codes and 8-bit results: [table][256], by the byte of the code, whatever its sign.
    const uint8_t* by_byte;
    const uint8_t* single;  // for each block of channels: whether it has one table
};

struct LinearPlan {
    Arena arena;
    size_t inputs, outputs;
    Type x_type, weight_type;
    const void* weight;    // [outputs, inputs], where the packed form is not used
    const int8_t* packed;  // or null
    const int32_t*
        bias;      // less what inputs are shifted by, times the row's sum: VNNI makes int8 uint8, NEON uint8 int8
    size_t steps;  // packed: fours of inputs; for AVX2, twos
    Requantizer requantizer;
    bool has_lookup, has_addition;
    LookupTable lookup;
    AdditionPlan addition;
};

struct LayerNormPlan {
    Arena arena;
    size_t channels;
    Type x_type;
    const int64_t* gain;
    const int64_t* offset;
    const int64_t* shift;
    const int64_t* zero;
    int64_t epsilon;
    int headroom;
    int32_t low, high;
    Type type;
    // For vectors: channels of each sixteen in the order 0, 2, .. 14, 1, 3, .. 15; offset with half and zero added,
    // for AVX-512 less 128 for uint8.
    bool quick;
    const int64_t* split_gain;
    const int64_t* split_offset;
    const int64_t* split_shift;
};

struct RequantizePlan {
    Arena arena;
    size_t channels;
    Requantizer requantizer;
    bool quick;
};

// How scores become weights.
struct SoftmaxRows {
    Softmax form;
    const int32_t* table;  // [heads / sharing, distances]
    size_t distances, sharing;
    Requantizer codes;  // uniform
    int last;           // log2
};

// A table of scores: [heads / sharing, rows, stride].
struct ScoreAddends {
    const int32_t* table;  // null: nothing is added
    size_t sharing, rows, stride;
    size_t step;  // from one key to the next: 0 where all have the same addend

    const int32_t* of(size_t head, size_t query) const {
        return table + (head / sharing * rows + query % rows) * stride;
    }
};

// The division of weighted sums by the sum of the weights, if there is any.
struct Division {
    bool normalize;
    int reciprocal_bits, fraction_bits;
};

struct AttentionPlan {
    Arena arena;
    size_t keys, channels, heads;
    Type q_type, k_type, v_type;
    const int32_t *zero_q, *zero_k, *zero_v;  // [channels]
    Requantizer scores;                       // [heads]
    ScoreAddends addends;                     // quick: rows padded to vectors; AVX-512: doubled
    SoftmaxRows softmax;
    const int32_t* zero_weights;
    Division division;
    Requantizer out;  // [channels]
    bool quick;
    const uint8_t* bytes;                     // quick: the table, [heads, 256]; diffusion: [heads, low and high, 256]
    const double *score_scale, *score_start;  // quick, as in the requantizer, but in the order of the heads

    bool is_diffusion() const { return softmax.form == Softmax::diffusion; }
    const uint8_t* table_of(size_t head) const { return bytes + head * (is_diffusion() ? 512 : 256); }
};

Owned<LinearPlan> make_linear(const LinearSpec&, Layout);
Owned<LayerNormPlan> make_layernorm(const LayerNormSpec&, Layout);
Owned<RequantizePlan> make_requantize(const RequantizeSpec&, Layout);
Owned<AttentionPlan> make_attention(const AttentionSpec&, Layout);

// What runs plans: the functions of a table that are compiled for its instruction set.
struct Functions {
    decltype(Kernels::linear_scratch) linear_scratch;
    decltype(Kernels::linear) linear;
    decltype(Kernels::layernorm) layernorm;
    decltype(Kernels::requantize) requantize;
    decltype(Kernels::attention_scratch) attention_scratch;
    decltype(Kernels::attention) attention;
};

extern const Functions avx2_functions, avxvnni_functions, avx512vnni_functions, avx512vbmi_functions, neondot_functions;

// Whether a plan runs in vectors; else one number at a time.
inline bool is_quick(const LinearPlan& plan) { return plan.packed != nullptr; }
inline bool is_quick(const LayerNormPlan& plan) { return plan.quick; }
inline bool is_quick(const RequantizePlan& plan) { return plan.quick; }
inline bool is_quick(const AttentionPlan& plan) { return plan.quick; }

// One number at a time: any machine, any types. Other tables use these for what they are not quick at.
namespace scalar {

size_t linear_scratch(const LinearPlan&);
void linear(const LinearPlan&, const LinearRun&);
void layernorm(const LayerNormPlan&, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride);
void requantize(const RequantizePlan&, size_t rows, const int32_t* x, size_t x_stride, void* out, size_t out_stride);
size_t attention_scratch(const AttentionPlan&);
void attention(const AttentionPlan&, const AttentionRun&);

}  // namespace scalar

}  // namespace vitquant::kernels
