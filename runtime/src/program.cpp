#include "program.hpp"

#include <algorithm>

namespace vitquant {

std::int64_t Value::elements() const {
    std::int64_t count = 1;
    for (std::int64_t n : shape) count *= n;
    return count;
}

DType Value::type() const {
    if (low >= -128 && high <= 127) return DType::int8;
    if (low >= 0 && high <= 255) return DType::uint8;
    if (low >= -32768 && high <= 32767) return DType::int16;
    return DType::int32;  // codes stay within 2^30
}

std::int64_t Value::centred_limit() const {
    const auto [least, most] = std::minmax_element(zero_point.begin(), zero_point.end());
    return std::max({std::int64_t{*most} - low, high - std::int64_t{*least}, std::int64_t{1}});
}

bool Value::is_plain() const {
    return std::all_of(zero_point.begin(), zero_point.end(), [](std::int32_t z) { return z == 0; });
}

std::vector<std::int32_t> Value::spread_zero() const {
    std::vector<std::int32_t> out;
    for (std::int64_t i = 0; i < axis_length(); ++i) out.push_back(zero_at(i));
    return out;
}

const std::vector<Form>& forms() {
    static const std::vector<Form> all = {
        {Kind::patches, "patches", {"x"}, {"height", "width"}, {}, {}},
        {Kind::linear, "linear", {"x"}, {}, {}, {"weight", "bias", "multiplier", "shift"}},
        {Kind::embed, "embed", {"x"}, {"prefix"}, {}, {"table", "multiplier", "shift"}},
        {Kind::layernorm, "layernorm", {"x"}, {"headroom"}, {}, {"gain", "offset", "shift", "epsilon"}},
        {Kind::requantize, "requantize", {"x"}, {"start"}, {}, {"multiplier", "shift"}},
        {Kind::scores, "scores", {"q", "k"}, {}, {}, {"multiplier", "shift"}},
        {Kind::softmax_row, "softmax_row", {"x"}, {}, {}, {"table"}},
        {Kind::softmax_uniform, "softmax_uniform", {"x"}, {}, {}, {"table", "multiplier", "shift"}},
        {Kind::softmax_log2, "softmax_log2", {"x"}, {"last"}, {}, {"table"}},
        {Kind::mix, "mix", {"p", "v"}, {"reciprocal_bits", "fraction_bits"}, {"normalize"}, {"multiplier", "shift"}},
        {Kind::add, "add", {"a", "b"}, {}, {}, {"multiplier_a", "shift_a", "multiplier_b", "shift_b"}},
        {Kind::lookup, "lookup", {"x"}, {}, {}, {"tables", "table_of"}},
        {Kind::take, "take", {"x"}, {"token"}, {}, {}},
        {Kind::pool, "pool", {"x"}, {"first"}, {}, {}},
    };
    return all;
}

}  // namespace vitquant
