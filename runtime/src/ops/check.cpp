#include "ops/check.hpp"

#include <algorithm>

#include "error.hpp"

namespace vitquant {
namespace {

constexpr int64_t kOperandLimit = int64_t{1} << 23;
constexpr Range kMultipliers = {1 << 21, (1 << 22) - 1}, kShifts = {0, 52};

}  // namespace

Range range_of(const Tensor& t) {
    Range range{t.at(0), t.at(0)};
    for (int64_t i = 1; i < t.count; ++i) {
        const int64_t x = t.at(i);
        range.low = std::min(range.low, x);
        range.high = std::max(range.high, x);
    }
    return range;
}

std::string span(int64_t low, int64_t high) { return std::to_string(low) + " .. " + std::to_string(high); }

void Check::run() {
    op_.kind->check(*this);
    known_.emplace(out().name, result_);
}

void Check::fail(const std::string& problem, const std::string& got, const std::string& expected) const {
    refuse(out().name, problem, got, expected);
}

void Check::fail_constant(const char* field, const std::string& problem, const std::string& got,
                          const std::string& expected) const {
    refuse(out().name + "/" + field, problem, got, expected);
}

const Tensor& Check::constant(std::string_view field, const Shape& shape) const {
    const auto& all = op_.kind->constants;
    const auto record = std::find_if(all.begin(), all.end(), [&](const Constant& c) { return c.name == field; });
    const std::vector<DType> types = record->types.empty() ? std::vector<DType>{out().type()} : record->types;
    const Tensor& t = op_.constant(field);
    bool fits = t.shape.size() == shape.size() && t.count <= kMaxElements &&
                std::find(types.begin(), types.end(), t.type) != types.end();
    for (size_t i = 0; fits && i < shape.size(); ++i)
        fits = t.shape[i] > 0 && (shape[i] == kAny || shape[i] == t.shape[i]);
    if (fits) return t;
    std::string wanted;
    for (DType type : types) wanted += (wanted.empty() ? "" : " or ") + std::string(name_of(type));
    refuse(out().name + "/" + std::string(field), "wrong constant", t.describe(), wanted + " " + describe_shape(shape));
}

void Check::rescale(int64_t length, const std::string& suffix) const {
    int64_t counts[2];
    for (int i = 0; i < 2; ++i) {
        const std::string name = (i ? "shift" : "multiplier") + suffix;
        const bool single = op_.constant(name).shape == Shape{1};
        const Tensor& t = constant(name, {single ? 1 : length});
        const Range found = range_of(t), allowed = i ? kShifts : kMultipliers;
        if (found.low < allowed.low || found.high > allowed.high)
            fail_constant(name.c_str(), "out of range", span(found.low, found.high), span(allowed.low, allowed.high));
        counts[i] = t.count;
    }
    if (counts[0] != counts[1]) fail("multiplier and shift differ in length");
}

void Check::shape(const Shape& shape) const {
    if (out().shape != shape)
        fail("not the shape that " + std::string(op_.kind->name) + " makes", describe_shape(out().shape),
             describe_shape(shape));
}

void Check::range(int64_t low, int64_t high) const {
    if (out().low > low || out().high < high) fail("the range does not hold all codes", span(out().low, out().high));
}

void Check::tokens(const Value& value) const {
    if (value.shape.size() != 2)
        fail(std::string(op_.kind->name) + " reads tokens", value.name + " " + describe_shape(value.shape));
}

void Check::operand(int64_t low, int64_t high) const {
    if (low < -kOperandLimit || high >= kOperandLimit)
        fail("it multiplies numbers of more than 24 bits", span(low, high));
}

void Check::accumulator(Wide limit) const {
    if (limit > kInt32Max)
        fail("an accumulator could overflow",
             limit < (Wide{1} << 62) ? "a sum of up to " + std::to_string(int64_t(limit)) : "",
             "at most 2147483647, 32 bits");
}

}  // namespace vitquant
