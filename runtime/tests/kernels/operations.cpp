// Steps that no instruction set does otherwise, against their definitions.
#include "check.hpp"
#include "ops/constants.hpp"
#include "ops/kind.hpp"

namespace test {
namespace {

using vitquant::Context;
using vitquant::DType;
using vitquant::Operation;
using vitquant::Tensor;
using vitquant::Value;

constexpr size_t kImages = 2;

Type any(Random& r) { return r.of({Type::i8, Type::u8, Type::i16, Type::i32}); }

Value value_of(const char* name, const std::vector<int64_t>& shape, const OwnedGrid& grid) {
    Value value;
    value.name = name, value.shape = shape, value.low = grid.low, value.high = grid.high;
    value.zero_point = grid.zero;
    return value;
}

// The codes of a value, of as many images.
Codes codes_of(Random& r, const Value& value) {
    Codes codes(vitquant::kernel_type(value.type()), kImages * static_cast<size_t>(value.elements()));
    codes.randomize(r, value.low, value.high);
    return codes;
}

template <class T>
Tensor tensor(DType type, const std::vector<T>& numbers, const std::vector<int64_t>& shape) {
    return {type, shape, reinterpret_cast<const uint8_t*>(numbers.data()), static_cast<int64_t>(numbers.size())};
}

void rescale_by(Operation& op, const OwnedRescale& rescale, const std::string& suffix = "") {
    const auto count = static_cast<int64_t>(rescale.multiplier.size());
    op.constants["multiplier" + suffix] = tensor(DType::int32, rescale.multiplier, {count});
    op.constants["shift" + suffix] = tensor(DType::uint8, rescale.shift, {count});
}

// What the step of an operation makes, by any number of tasks.
Codes result_of(Random& r, const Operation& op, const std::vector<Value>& operands, std::vector<Codes> inputs) {
    Context context{*portable(), {{op.out.name, &op.out}}, {}};
    for (const Value& value : operands) context.values.emplace(value.name, &value);
    const auto step = op.kind->make_step(op, context);
    Codes result(vitquant::kernel_type(op.out.type()), kImages * static_cast<size_t>(op.out.elements()), untouched);
    std::vector<uint8_t*> values;
    for (Codes& input : inputs) {
        step->reads.push_back(static_cast<int>(values.size()));
        values.push_back(input.bytes.data());
    }
    step->writes = static_cast<int>(values.size());
    values.push_back(result.bytes.data());
    Scratch scratch(step->scratch_bytes());
    const auto threads = static_cast<size_t>(r.in(1, 3));
    const vitquant::Frame frame{kImages, threads, values.data(), static_cast<uint8_t*>(scratch.memory)};
    for (size_t task = 0; task < step->tasks(kImages, threads); ++task) step->run(frame, task);
    return result;
}

Operation operation(const char* kind, const Value& out, const std::vector<std::string>& reads) {
    return {vitquant::find_kind(kind), out, reads, {}, {}};
}

template <class Want>
void expect(const char* what, uint64_t seed, const Codes& got, size_t rows, size_t width, Want want) {
    expect_rows(*portable(), what, seed, got, kImages * rows, width, 0, width, want);
}

void add(uint64_t seed) {
    Random r(seed);
    const int64_t rows = r.in(1, 9), channels = r.in(1, 150);
    const auto width = static_cast<size_t>(channels);
    const OwnedGrid a(r, any(r), width, r.chance(50)), b(r, any(r), width, r.chance(50)),
        sum(r, any(r), width, r.chance(50));
    const OwnedRescale rescale_a(r, width, static_cast<double>(a.high - a.low), 3e4),
        rescale_b(r, width, static_cast<double>(b.high - b.low), 300);
    Operation op = operation("add", value_of("sum", {rows, channels}, sum), {"a", "b"});
    rescale_by(op, rescale_a, "_a"), rescale_by(op, rescale_b, "_b");
    const std::vector<Value> operands = {value_of("a", op.out.shape, a), value_of("b", op.out.shape, b)};
    const Codes as = codes_of(r, operands[0]), bs = codes_of(r, operands[1]);
    const Codes result = result_of(r, op, operands, {as, bs});
    expect("add", seed, result, static_cast<size_t>(rows), width, [&](size_t row, size_t c) {
        const int64_t x = as.get(row * width + c) - a.zero_of(c), y = bs.get(row * width + c) - b.zero_of(c);
        return clamp(rescale_a(x, c) + rescale_b(y, c) + sum.zero_of(c), sum.low, sum.high);
    });
}

void requantize(uint64_t seed) {
    Random r(seed);
    const int64_t rows = r.in(1, 9), x_channels = r.in(1, 150), first = r.in(0, x_channels - 1);
    const int64_t channels = r.in(1, x_channels - first);
    const auto width = static_cast<size_t>(channels), x_width = static_cast<size_t>(x_channels),
               start = static_cast<size_t>(first);
    const OwnedGrid x(r, any(r), x_width, r.chance(50)), out(r, any(r), width, r.chance(50));
    const OwnedRescale rescale(r, width, static_cast<double>(x.high - x.low), 300);
    Operation op = operation("requantize", value_of("out", {rows, channels}, out), {"x"});
    op.numbers["start"] = first;
    rescale_by(op, rescale);
    const std::vector<Value> operands = {value_of("x", {rows, x_channels}, x)};
    const Codes xs = codes_of(r, operands[0]), result = result_of(r, op, operands, {xs});
    expect("requantize", seed, result, static_cast<size_t>(rows), width, [&](size_t row, size_t c) {
        return clamp(rescale(xs.get(row * x_width + start + c) - x.zero_of(start + c), c) + out.zero_of(c), out.low,
                     out.high);
    });
}

void lookup(uint64_t seed) {
    Random r(seed);
    const int64_t rows = r.in(1, 9), channels = r.in(1, 150);
    const auto width = static_cast<size_t>(channels);
    const OwnedGrid x(r, r.of({Type::i8, Type::u8, Type::i16}), width, true), out(r, any(r), width, true);
    Operation op = operation("lookup", value_of("out", {rows, channels}, out), {"x"});
    const int64_t codes = x.high - x.low + 1;
    Codes tables(vitquant::kernel_type(op.out.type()), static_cast<size_t>(3 * codes));
    tables.randomize(r, out.low, out.high);
    std::vector<int32_t> table_of;
    for (size_t c = 0; c < width; ++c) table_of.push_back(static_cast<int32_t>(r.in(0, 2)));
    op.constants["tables"] = {op.out.type(), {3, codes}, tables.bytes.data(), 3 * codes};
    op.constants["table_of"] = tensor(DType::int32, table_of, {channels});
    const std::vector<Value> operands = {value_of("x", op.out.shape, x)};
    const Codes xs = codes_of(r, operands[0]), result = result_of(r, op, operands, {xs});
    expect("lookup", seed, result, static_cast<size_t>(rows), width, [&](size_t row, size_t c) {
        return tables.get(static_cast<size_t>(table_of[c] * codes + xs.get(row * width + c) - x.low));
    });
}

void patches(uint64_t seed) {
    Random r(seed);
    const auto few = [&] { return static_cast<size_t>(r.in(1, 5)); };
    const size_t height = few(), width = few(), down = few(), across = few(), channels = few();
    const size_t image_height = height * down, image_width = width * across, size = channels * height * width;
    OwnedGrid x(r, r.of({Type::u8, Type::u8, Type::i8, Type::i16}), 1, true), out = x;
    if (r.chance(30)) out.low -= 300, out.high += 300;  // of another type
    Operation op = operation(
        "patches", value_of("out", {static_cast<int64_t>(down * across), static_cast<int64_t>(size)}, out), {"x"});
    op.numbers["height"] = static_cast<int64_t>(height), op.numbers["width"] = static_cast<int64_t>(width);
    const std::vector<Value> operands = {value_of(
        "x", {static_cast<int64_t>(channels), static_cast<int64_t>(image_height), static_cast<int64_t>(image_width)},
        x)};
    const Codes xs = codes_of(r, operands[0]), result = result_of(r, op, operands, {xs});
    expect("patches", seed, result, down * across, size, [&](size_t row, size_t i) {
        const size_t image = row / (down * across), patch = row % (down * across);
        const size_t c = image * channels + i / (height * width), y = i / width % height, z = i % width;
        return xs.get((c * image_height + patch / across * height + y) * image_width + patch % across * width + z);
    });
}

}  // namespace

void operations(uint64_t seed) {
    add(seed);
    requantize(seed);
    lookup(seed);
    patches(seed);
}

}  // namespace test
