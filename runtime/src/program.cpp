#include "program.hpp"

#include <algorithm>

#include "ops/kind.hpp"

namespace vitquant {

int64_t Value::elements() const {
    int64_t count = 1;
    for (int64_t n : shape) count *= n;
    return count;
}

DType Value::type() const {
    if (low >= -128 && high <= 127) return DType::int8;
    if (low >= 0 && high <= 255) return DType::uint8;
    if (low >= -32768 && high <= 32767) return DType::int16;
    return DType::int32;  // codes stay within 2^30
}

int64_t Value::centred_limit() const {
    const auto [least, most] = std::minmax_element(zero_point.begin(), zero_point.end());
    return std::max({int64_t{*most} - low, high - int64_t{*least}, int64_t{1}});
}

bool Value::is_plain() const {
    return std::all_of(zero_point.begin(), zero_point.end(), [](int32_t z) { return z == 0; });
}

std::vector<int32_t> Value::spread_zero() const {
    std::vector<int32_t> out;
    for (int64_t i = 0; i < axis_length(); ++i) out.push_back(zero_at(i));
    return out;
}

bool Operation::is(std::string_view kind_name) const { return kind->name == kind_name; }

}  // namespace vitquant
