// Plans from specifications: constants spread over channels, padded, packed.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "scalar.hpp"

namespace vitquant::kernels {

namespace {

constexpr double narrow_limit = 1 << 30;
constexpr double float_limit = 1 << 21;     // of results, by which floats leave their halves
constexpr double exact_in_float = 1 << 24;  // of sums
constexpr int32_t addend_limit = 1 << 29;   // of scores in vectors: a code that is this far out of its range is clamped
constexpr size_t addend_count = 1 << 26;    // of them at most, as their rows are padded

bool is_byte(Type type) { return type == Type::i8 || type == Type::u8; }

size_t padded(size_t channels) { return (channels + channel_block - 1) / channel_block * channel_block; }

// `count` equal runs, spread over the channels; padded once more, as vectors may begin at the last channel.
template <class To, class From>
To* spread(Arena& arena, const From* values, size_t count, size_t channels) {
    To* all = arena.array<To>(padded(channels) + channel_block);
    for (size_t c = 0; c < channels; ++c) all[c] = static_cast<To>(values[c / (channels / count)]);
    return all;
}

int32_t* zeros(Arena& arena, const Grid& grid, size_t channels) {
    return spread<int32_t>(arena, grid.zero_point, grid.zero_count, channels);
}

double largest_code(const Grid& grid) { return std::fmax(std::fabs(grid.low), std::fabs(grid.high)); }

// Largest |code - zero point|.
double centred_limit(const Grid& grid) {
    int64_t limit = 0;  // no maximum of doubles, on which some compilers for Arm stumble
    for (size_t i = 0; i < grid.zero_count; ++i) {
        const int64_t zero = grid.zero_point[i];
        limit = std::max({limit, zero - grid.low, grid.high - zero});
    }
    return static_cast<double>(limit);
}

// What makes a byte signed.
int32_t signed_shift(Type type) { return type == Type::u8 ? 128 : 0; }

// `zero` (spread over the channels) may be null; `limits` bounds what is rescaled, of each channel: 32 bits at most.
Requantizer make_requantizer(Arena& arena, Layout layout, const Rescale& rescale, const int32_t* zero, int32_t low,
                             int32_t high, Type type, size_t channels, const double* limits) {
    Requantizer r{};
    const auto* multiplier = spread<int32_t>(arena, rescale.multiplier, rescale.count, channels);
    const auto* shift = spread<int32_t>(arena, rescale.shift, rescale.count, channels);
    auto* scale = arena.array<double>(padded(channels) + channel_block);
    auto* start = arena.array<double>(padded(channels) + channel_block);
    r.zero = zero != nullptr ? zero : arena.array<int32_t>(padded(channels) + channel_block);
    r.narrow = true;
    const bool wide = layout == Layout::avx512vnni;
    bool floats = wide;
    for (size_t c = 0; c < padded(channels) + channel_block; ++c) start[c] = wide ? fixed_point : 0.0;
    for (size_t c = 0; c < channels; ++c) {
        const size_t at = wide ? interleaved(c) : c;
        scale[at] = std::ldexp(multiplier[c], -shift[c]);
        start[at] += (wide ? r.zero[c] - signed_shift(type) : 0) + 0.5;  // unshifted, sums are whole without the half
        const double reach = limits[c] * scale[at] + std::fabs(r.zero[c]) + 129;
        r.narrow = r.narrow && reach < narrow_limit;
        floats = floats && reach < float_limit && limits[c] <= exact_in_float;
    }
    if (floats) {
        auto* float_scale = arena.array<float>(padded(channels) + channel_block);
        auto* float_start = arena.array<float>(padded(channels) + channel_block);
        for (size_t c = 0; c < padded(channels) + channel_block; ++c) {
            float_scale[c] = static_cast<float>(scale[interleaved(c)]);
            float_start[c] = static_cast<float>(start[interleaved(c)] - fixed_point) + float_fixed_point;
        }
        r.float_scale = float_scale, r.float_start = float_start;
    }
    r.multiplier = multiplier, r.shift = shift, r.scale = scale, r.start = start;
    r.low = low, r.high = high, r.type = type;
    return r;
}

const double* constant_limits(Arena& arena, double limit, size_t channels) {
    auto* limits = arena.array<double>(padded(channels));
    for (size_t c = 0; c < channels; ++c) limits[c] = limit;
    return limits;
}

bool is_identity(const Rescale& rescale) {
    for (size_t i = 0; i < rescale.count; ++i) {
        if (rescale.shift[i] > 30 || rescale.multiplier[i] != int32_t{1} << rescale.shift[i]) return false;
    }
    return true;
}

bool is_zero(const Grid& grid) {
    for (size_t i = 0; i < grid.zero_count; ++i) {
        if (grid.zero_point[i] != 0) return false;
    }
    return true;
}

bool is_zero(const ScoreTable& table) {
    const size_t count = table.heads * table.rows * table.keys;
    return std::all_of(table.addends, table.addends + count, [](int32_t x) { return x == 0; });
}

// As it is, for the scalar functions; or for vectors, in rows that are padded, and doubled where scores are.
ScoreAddends make_addends(Arena& arena, Layout layout, const ScoreTable& table, size_t heads, bool quick) {
    const int32_t limit = quick ? addend_limit : INT32_MAX, factor = quick && layout == Layout::avx512vnni ? 2 : 1;
    ScoreAddends found{nullptr, heads / table.heads, table.rows, quick ? padded(table.keys) : table.keys,
                       table.keys > 1 ? size_t{1} : 0};
    if (quick && is_zero(table)) return found;
    auto* rows = arena.array<int32_t>(table.heads * table.rows * found.stride);
    for (size_t r = 0; r < table.heads * table.rows; ++r)
        for (size_t i = 0; i < table.keys; ++i)
            rows[r * found.stride + i] = std::clamp(table.addends[r * table.keys + i], -limit, limit) * factor;
    found.table = rows;
    return found;
}

AdditionPlan make_addition(Arena& arena, Layout layout, const Addition& addition, const Grid& b, size_t channels) {
    AdditionPlan plan{};
    const int32_t* zero = zeros(arena, addition.out, channels);
    plan.a_type = addition.a.type;
    plan.zero_a = zeros(arena, addition.a, channels);
    plan.zero_b = zeros(arena, b, channels);
    plan.a = make_requantizer(arena, layout, addition.rescale_a, zero, 0, 0, Type::i32, channels,
                              constant_limits(arena, centred_limit(addition.a), channels));
    plan.b = make_requantizer(arena, layout, addition.rescale_b, nullptr, 0, 0, Type::i32, channels,
                              constant_limits(arena, centred_limit(b), channels));
    plan.b_is_identity = is_identity(addition.rescale_b);
    plan.a_is_added_as_is = is_identity(addition.rescale_a) && is_zero(addition.a) && is_zero(addition.out);
    plan.low = addition.out.low, plan.high = addition.out.high, plan.type = addition.out.type;
    return plan;
}

LookupTable make_table(Arena& arena, const LookupTables& tables, const Grid& x, size_t channels) {
    LookupTable plan{};
    plan.codes = static_cast<size_t>(static_cast<int64_t>(x.high) - x.low + 1);
    plan.low = x.low, plan.type = tables.out;
    const size_t bytes = tables.table_count * plan.codes * size_of(tables.out);
    auto* copy = arena.array<uint8_t>(bytes);
    std::memcpy(copy, tables.tables, bytes);
    plan.bytes = copy;
    plan.table_of = spread<int32_t>(arena, tables.table_of, channels, channels);
    if (!is_byte(x.type) || !is_byte(tables.out)) return plan;
    auto* by_byte = arena.array<uint8_t>(tables.table_count * 256);
    for (size_t t = 0; t < tables.table_count; ++t) {
        for (int32_t code = x.low; code <= x.high; ++code) {
            by_byte[t * 256 + static_cast<uint8_t>(code)] = copy[t * plan.codes + static_cast<size_t>(code - x.low)];
        }
    }
    auto* single = arena.array<uint8_t>(padded(channels) / channel_block);
    for (size_t c = 0; c < channels; ++c) {
        const size_t block = c / channel_block;
        if (c % channel_block == 0) single[block] = 1;
        if (plan.table_of[c] != plan.table_of[block * channel_block]) single[block] = 0;
    }
    plan.by_byte = by_byte, plan.single = single;
    return plan;
}

int64_t weight_at(const void* weight, Type type, size_t i) {
    switch (type) {
        case Type::i8: return static_cast<const int8_t*>(weight)[i];
        case Type::u8: return static_cast<const uint8_t*>(weight)[i];
        case Type::i16: return static_cast<const int16_t*>(weight)[i];
        default: return static_cast<const int32_t*>(weight)[i];
    }
}

// Blocks of outputs; in each, `together` inputs of each output after the other. Steps are taken `at_once`.
struct Packing {
    size_t block, together, at_once;

    size_t steps(size_t inputs) const {
        const size_t unit = together * at_once;
        return (inputs + unit - 1) / unit * at_once;
    }
};

Packing packing_of(Layout layout) {
    switch (layout) {
        case Layout::avx2: return {16, 2, 1};
        case Layout::avx512vnni: return {64, 4, 1};
        case Layout::neondot: return {16, 4, 4};
        default: return {16, 4, 1};
    }
}

// What is added to inputs, so that all have the sign that the instructions multiply with int8.
int32_t input_shift(Layout layout, Type type) {
    if (layout == Layout::avx2) return 0;
    if (layout == Layout::neondot) return type == Type::u8 ? -128 : 0;
    return type == Type::i8 ? 128 : 0;
}

const int8_t* pack_weight(Arena& arena, const int8_t* weight, size_t outputs, size_t inputs, const Packing& packing) {
    const size_t block = packing.block, together = packing.together, steps = packing.steps(inputs);
    auto* packed = arena.array<int8_t>(padded(outputs) * steps * together);
    for (size_t n = 0; n < outputs; ++n) {
        int8_t* to = packed + (n / block * block * steps + n % block) * together;
        for (size_t k = 0; k < inputs; ++k) to[k / together * block * together + k % together] = weight[n * inputs + k];
    }
    return packed;
}

}  // namespace

Owned<LinearPlan> make_linear(const LinearSpec& spec, Layout layout) {
    Owned<LinearPlan> plan(new LinearPlan{});
    Arena& arena = plan->arena;
    const size_t outputs = spec.outputs, inputs = spec.inputs;
    plan->inputs = inputs, plan->outputs = outputs;
    plan->x_type = spec.x.type, plan->weight_type = spec.weight_type;
    auto* bias = spread<int32_t>(arena, spec.bias, outputs, outputs);
    auto* limits = arena.array<double>(padded(outputs));
    auto* sums = arena.array<int64_t>(padded(outputs));
    for (size_t n = 0; n < outputs; ++n) {
        double magnitude = 0;
        for (size_t k = 0; k < inputs; ++k) {
            const int64_t w = weight_at(spec.weight, spec.weight_type, n * inputs + k);
            magnitude += std::fabs(static_cast<double>(w));
            sums[n] += w;
        }
        limits[n] = magnitude * largest_code(spec.x) + std::fabs(bias[n]);
    }
    plan->requantizer = make_requantizer(arena, layout, spec.rescale, zeros(arena, spec.out, outputs), spec.out.low,
                                         spec.out.high, spec.out.type, outputs, limits);
    if (spec.lookup != nullptr) {
        plan->has_lookup = true;
        plan->lookup = make_table(arena, *spec.lookup, spec.out, outputs);
    }
    if (spec.addition != nullptr) {
        plan->has_addition = true;
        plan->addition = make_addition(arena, layout, *spec.addition, spec.out, outputs);
        // Codes that are narrow are not clamped where all of 31 bits are allowed: then their zero point cancels.
        const double limit = narrow_limit - 1;
        if (plan->requantizer.narrow && spec.out.low <= -limit && spec.out.high >= limit) {
            plan->requantizer = make_requantizer(arena, layout, spec.rescale, nullptr, spec.out.low, spec.out.high,
                                                 spec.out.type, outputs, limits);
            plan->addition.zero_b = arena.array<int32_t>(padded(outputs) + channel_block);
            plan->addition.b_is_free = plan->requantizer.narrow;
        }
    }
    if (layout != Layout::portable && is_byte(spec.x.type) && spec.weight_type == Type::i8) {
        const Packing packing = packing_of(layout);
        plan->steps = packing.steps(inputs);
        plan->packed = pack_weight(arena, static_cast<const int8_t*>(spec.weight), outputs, inputs, packing);
        const auto shift = static_cast<uint32_t>(input_shift(layout, spec.x.type));
        for (size_t n = 0; n < outputs; ++n) {  // sums wrap around as the accumulators do
            bias[n] = static_cast<int32_t>(static_cast<uint32_t>(bias[n]) - shift * static_cast<uint32_t>(sums[n]));
        }
    } else {
        const size_t bytes = outputs * inputs * size_of(spec.weight_type);
        auto* weight = arena.array<uint8_t>(bytes);
        std::memcpy(weight, spec.weight, bytes);
        plan->weight = weight;
    }
    plan->bias = bias;
    return plan;
}

Owned<LayerNormPlan> make_layernorm(const LayerNormSpec& spec, Layout layout) {
    Owned<LayerNormPlan> plan(new LayerNormPlan{});
    Arena& arena = plan->arena;
    const size_t channels = spec.channels;
    plan->channels = channels;
    plan->x_type = spec.x.type;
    plan->gain = spread<int64_t>(arena, spec.gain, channels, channels);
    plan->offset = spread<int64_t>(arena, spec.offset, channels, channels);
    plan->shift = spread<int64_t>(arena, spec.shift, channels, channels);
    plan->zero = spread<int64_t>(arena, spec.out.zero_point, spec.out.zero_count, channels);
    plan->epsilon = spec.epsilon, plan->headroom = spec.headroom;
    plan->low = spec.out.low, plan->high = spec.out.high, plan->type = spec.out.type;
    plan->quick = layout != Layout::portable && spec.x.type == Type::i16 && is_byte(spec.out.type);
    const int32_t less = layout == Layout::avx512vnni ? signed_shift(spec.out.type) : 0;
    auto* gain = arena.array<int64_t>(padded(channels));
    auto* offset = arena.array<int64_t>(padded(channels));
    auto* shift = arena.array<int64_t>(padded(channels));
    for (size_t c = 0; c < channels; ++c) {
        const size_t at = c / 16 * 16 + c % 2 * 8 + c % 16 / 2;
        const double half = std::ldexp(1.0, spec.shift[c] - 1);
        // |normalised| is at most sqrt(channels) * 2^20, and a little; results must fit 32 bits before they are
        // clamped.
        const double reach = (std::fabs(double(spec.gain[c])) * (std::sqrt(double(channels)) + 1) * 1048576.0 * 1.01 +
                              std::fabs(double(spec.offset[c])) + half) /
                                 (2 * half) +
                             std::fabs(double(plan->zero[c])) + 128;
        plan->quick = plan->quick && std::llabs(spec.gain[c]) < (int64_t{1} << 31) && reach < narrow_limit;
        if (!plan->quick) break;
        gain[at] = spec.gain[c];
        shift[at] = spec.shift[c];
        offset[at] = spec.offset[c] + (int64_t{1} << (spec.shift[c] - 1)) +
                     (plan->zero[c] - less) * (int64_t{1} << spec.shift[c]);
    }
    plan->split_gain = gain, plan->split_offset = offset, plan->split_shift = shift;
    return plan;
}

Owned<RequantizePlan> make_requantize(const RequantizeSpec& spec, Layout layout) {
    Owned<RequantizePlan> plan(new RequantizePlan{});
    Arena& arena = plan->arena;
    plan->channels = spec.channels;
    plan->requantizer = make_requantizer(arena, layout, spec.rescale, zeros(arena, spec.out, spec.channels),
                                         spec.out.low, spec.out.high, spec.out.type, spec.channels,
                                         constant_limits(arena, static_cast<double>(spec.limit), spec.channels));
    plan->quick = layout != Layout::portable && plan->requantizer.narrow;
    return plan;
}

Owned<AttentionPlan> make_attention(const AttentionSpec& spec, Layout layout) {
    Owned<AttentionPlan> plan(new AttentionPlan{});
    Arena& arena = plan->arena;
    const size_t channels = spec.channels, heads = spec.heads;
    plan->keys = spec.keys, plan->channels = channels, plan->heads = heads;
    plan->q_type = spec.q.type, plan->k_type = spec.k.type, plan->v_type = spec.v.type;
    plan->zero_q = zeros(arena, spec.q, channels);
    plan->zero_k = zeros(arena, spec.k, channels);
    plan->zero_v = zeros(arena, spec.v, channels);
    const double score_limit = static_cast<double>(channels / heads) * centred_limit(spec.q) * centred_limit(spec.k);
    plan->scores =
        make_requantizer(arena, layout, spec.scores_rescale, zeros(arena, spec.scores, heads), spec.scores.low,
                         spec.scores.high, spec.scores.type, heads, constant_limits(arena, score_limit, heads));
    const auto distances = static_cast<size_t>(static_cast<int64_t>(spec.scores.high) - spec.scores.low + 1);
    const size_t sharing = heads / spec.table_count;
    auto* table = arena.array<int32_t>(spec.table_count * distances);
    std::memcpy(table, spec.table, spec.table_count * distances * sizeof(int32_t));
    plan->softmax.form = spec.softmax, plan->softmax.last = spec.last;
    plan->softmax.table = table, plan->softmax.distances = distances, plan->softmax.sharing = sharing;
    plan->zero_weights = zeros(arena, spec.weights, heads);
    if (spec.softmax == Softmax::uniform) {
        plan->softmax.codes =
            make_requantizer(arena, layout, spec.weights_rescale, plan->zero_weights, spec.weights.low,
                             spec.weights.high, spec.weights.type, heads, constant_limits(arena, 1 << 30, heads));
    }
    plan->division = {spec.normalize, spec.reciprocal_bits, spec.fraction_bits};
    const double mix_limit = spec.normalize ? std::ldexp(centred_limit(spec.v), spec.fraction_bits) + 1 : 2147483648.0;
    plan->out = make_requantizer(arena, layout, spec.rescale, zeros(arena, spec.out, channels), spec.out.low,
                                 spec.out.high, spec.out.type, channels, constant_limits(arena, mix_limit, channels));
    const bool diffusion = spec.softmax == Softmax::diffusion;
    bool quick = layout != Layout::portable && (diffusion || spec.softmax == Softmax::row) && spec.normalize &&
                 is_byte(spec.q.type) && is_byte(spec.k.type) && is_byte(spec.v.type) && is_byte(spec.out.type) &&
                 is_byte(spec.scores.type) && plan->scores.narrow && plan->out.narrow;
    const int32_t largest = diffusion ? 255 << diffusion_bits : 255;
    const size_t stride = diffusion ? 512 : 256;
    auto* bytes = arena.array<uint8_t>(heads * stride);
    for (size_t i = 0; quick && i < heads * distances; ++i) {
        const int32_t e = table[i / distances / sharing * distances + i % distances];
        quick = e <= largest;
        uint8_t* to = bytes + i / distances * stride + i % distances;
        to[0] = static_cast<uint8_t>(e);
        if (diffusion) to[256] = static_cast<uint8_t>(e >> 8);
    }
    plan->bytes = bytes;
    auto* score_scale = arena.array<double>(heads);
    auto* score_start = arena.array<double>(heads);
    double reach = 0;  // of a score before anything is added
    for (size_t h = 0; h < heads; ++h) {
        const size_t at = layout == Layout::avx512vnni ? interleaved(h) : h;
        score_scale[h] = plan->scores.scale[at], score_start[h] = plan->scores.start[at];
        reach = std::max(reach, score_limit * score_scale[h] + std::fabs(plan->scores.zero[h]) + 1);
    }
    plan->score_scale = score_scale, plan->score_start = score_start;
    const ScoreTable& added = spec.score_table;
    plan->quick = quick && (is_zero(added) || (added.keys == spec.keys && reach < addend_limit - 256 &&
                                               added.heads * added.rows <= addend_count / padded(added.keys)));
    plan->addends = make_addends(arena, layout, added, heads, plan->quick);
    return plan;
}

}  // namespace vitquant::kernels
