#include "format/validate.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "error.hpp"
#include "ops/check.hpp"

namespace vitquant {
namespace {

constexpr size_t kMaxName = 200;

void check_outputs(const Program& program, const KnownValues& known) {
    if (program.outputs.empty()) refuse("outputs", "a program has at least one");
    std::unordered_set<std::string_view> names;
    for (const Output& output : program.outputs) {
        const std::string where = "output " + output.name;
        if (!names.insert(output.name).second) refuse(where, "two outputs have the same name");
        const auto found = known.find(output.value);
        if (found == known.end() || output.value == program.image.name)
            refuse(where, "not a value that an operation makes", output.value);
        const Value& value = *found->second.value;
        if (value.shape.size() != 2) refuse(where, "an output has two axes", describe_shape(value.shape));
        if (output.pooled && value.shape[0] != 1)
            refuse(where, "a pooled output must have one row", describe_shape(value.shape));
    }
}

}  // namespace

void check_name(const std::string& name) {
    const bool shown = std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~'; });
    if (!shown || name.empty() || name.size() > kMaxName)
        refuse("name", "not a name", name, "1 to " + std::to_string(kMaxName) + " printable ASCII characters");
}

void check_grid(const Value& value, const Tensor& scale, const Tensor& zero_point) {
    if (scale.type != DType::float32) refuse(value.name, "scales must be positive float32");
    if (zero_point.type != DType::int32) refuse(value.name, "zero points must be int32", name_of(zero_point.type));
    for (const Tensor* t : {&scale, &zero_point})
        if (t->shape.size() != 1 || t->count < 1 || t->count > kMaxElements)
            refuse(value.name, "scale or zero point does not fit the shape", describe_shape(t->shape));
}

void check_value(const Value& value) {
    const std::string& name = value.name;
    bool possible = value.shape.size() == 2 || value.shape.size() == 3;
    int64_t elements = 1;
    for (int64_t n : value.shape) {
        possible = possible && n >= 1 && n <= kMaxElements;
        if (possible) possible = (elements *= n) <= kMaxElements;
    }
    if (!possible)
        refuse(name, "not a shape that can be computed", describe_shape(value.shape),
               "at most " + std::to_string(kMaxElements) + " elements");
    if (value.low < -kAddendLimit || value.high > kAddendLimit || value.low >= value.high)
        refuse(name, "not a range of codes", span(value.low, value.high));
    for (size_t groups : {value.scale.size(), value.zero_point.size()})
        if (groups < 1 || value.axis_length() % int64_t(groups))
            refuse(name, "scale or zero point does not fit the shape", std::to_string(groups),
                   "a divisor of " + std::to_string(value.axis_length()));
    for (float s : value.scale)
        if (!std::isfinite(s) || s <= 0) refuse(name, "scales must be positive float32");
    for (int32_t z : value.zero_point)
        if (z < value.low || z > value.high) refuse(name, "a zero point is not one of the codes", std::to_string(z));
    if (value.centred_limit() > kInt32Max)
        refuse(name, "codes less their zero point would leave 32 bits", span(value.low, value.high));
}

void validate(const Program& program, Interrupt* interrupt) {
    const Value& image = program.image;
    if (image.shape.size() != 3 || image.low != 0 || image.high != 255)
        refuse(image.name, "the image must be uint8 [channels, height, width]", describe_shape(image.shape));
    KnownValues known{{image.name, {&image}}};
    for (const Operation& op : program.operations) {
        go_on(interrupt);
        if (known.count(op.out.name)) refuse(op.out.name, "two values have the same name");
        for (const std::string& name : op.reads)
            if (!known.count(name)) refuse(op.out.name, "it reads a value that does not exist yet", name);
        Check(op, known).run();
    }
    check_outputs(program, known);
}

}  // namespace vitquant
