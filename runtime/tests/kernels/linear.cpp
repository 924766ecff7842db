#include <cmath>

#include "check.hpp"

namespace test {
namespace {

// A table of codes for each run of channels.
struct OwnedTables {
    Codes tables;
    std::vector<int32_t> table_of;
    size_t codes;

    OwnedTables(Random& r, const OwnedGrid& x, Type out, size_t channels)
        : tables(out, 0), codes(static_cast<size_t>(x.high - x.low + 1)) {
        const size_t count = static_cast<size_t>(r.in(1, 4));
        tables = Codes(out, count * codes);
        tables.randomize(r, lowest(out), highest(out));
        const int64_t changes = r.of({0, 2, 50});
        for (size_t c = 0; c < channels; ++c) {
            const bool next = c == 0 || r.in(0, 99) < changes;
            table_of.push_back(next ? static_cast<int32_t>(r.in(0, static_cast<int64_t>(count) - 1)) : table_of.back());
        }
    }
    LookupTables view() { return {tables.data(), tables.size() / codes, table_of.data(), tables.type}; }
};

}  // namespace

void linear(const Kernels& kernels, uint64_t seed) {
    Random r(seed);
    const size_t rows = static_cast<size_t>(r.chance(5) ? r.in(100, 400) : r.in(1, 20));
    const size_t inputs = static_cast<size_t>(r.chance(5) ? r.in(500, 3000) : r.in(1, 150));
    const size_t outputs = static_cast<size_t>(r.in(1, 200));
    const bool bytes = r.chance(80);
    OwnedGrid x(r, bytes ? r.of({Type::i8, Type::u8}) : r.of({Type::i16, Type::i32, Type::u8}), inputs, true);
    if (x.type == Type::i32) x.low = -30000, x.high = 5;
    const Type weight_type = bytes ? Type::i8 : r.of({Type::i8, Type::i16});
    const int64_t reach = std::max(std::llabs(x.low), std::llabs(x.high));
    const int64_t room = ((int64_t{1} << 31) - 2) / (static_cast<int64_t>(inputs) * reach);
    const int64_t weight_limit = std::min<int64_t>(weight_type == Type::i8 ? 127 : 32767, room);
    Codes weight(weight_type, inputs * outputs);
    weight.randomize(r, weight_limit == 127 ? -128 : -weight_limit, weight_limit);
    if (weight_limit == 127 && 128 * reach * static_cast<int64_t>(inputs) >= (int64_t{1} << 31) - 2)
        weight.randomize(r, -127, 127);
    if (r.chance(10)) weight.randomize(r, 0, 0);
    std::vector<int32_t> bias;
    const bool small_biases = r.chance(50);  // sums stay exact as floats
    double largest = 1;
    for (size_t n = 0; n < outputs; ++n) {
        int64_t magnitude = 0;
        for (size_t k = 0; k < inputs; ++k) magnitude += std::llabs(weight.get(n * inputs + k)) * reach;
        const int64_t left = (int64_t{1} << 31) - 1 - magnitude;
        const bool small = small_biases || r.chance(70);
        bias.push_back(static_cast<int32_t>(small ? r.in(-left / 1000, left / 1000) : r.extreme(-left, left)));
        largest = std::fmax(largest, static_cast<double>(magnitude) + std::fabs(bias.back()));
    }
    const int mode = static_cast<int>(r.in(0, 2));  // plain, look-up, addition
    const Type out_type = mode == 0   ? r.of({Type::i8, Type::u8, Type::i8, Type::u8, Type::i16, Type::i32})
                          : mode == 1 ? r.of({Type::i8, Type::u8, Type::i8, Type::u8, Type::i16})
                                      : r.of({Type::i32, Type::i32, Type::i16});
    OwnedGrid out(r, out_type, outputs, r.chance(50));
    OwnedRescale rescale(r, outputs, largest, r.of({300.0, 1000.0, 100000.0}));

    OwnedTables tables(r, out_type == Type::i32 ? OwnedGrid(r, Type::i8, 1, true) : out,
                       r.of({Type::i8, Type::u8, Type::u8, Type::i16}), outputs);
    OwnedGrid a(r, r.of({Type::i16, Type::i16, Type::i16, Type::u8, Type::i32}), outputs, r.chance(50));
    OwnedGrid sum(r, r.of({Type::i16, Type::i16, Type::i8, Type::i32}), outputs, r.chance(50));
    OwnedRescale rescale_a(r, outputs, static_cast<double>(a.high - a.low), r.of({300.0, 30000.0}));
    if (mode == 2 && r.chance(50)) out.low = -(1 << 30), out.high = 1 << 30, out.type = Type::i32;  // never clamped
    if (mode == 2 && r.chance(40)) {  // the table of an embedding
        a = OwnedGrid(r, Type::i32, outputs, false), rescale_a = OwnedRescale();
        if (r.chance(70)) sum.zero.assign(sum.zero.size(), 0);
        if (r.chance(70)) a.low = -20000, a.high = 20000, a.zero.assign(a.zero.size(), 0);
        sum.low = lowest(sum.type), sum.high = highest(sum.type);
    }
    const OwnedRescale rescale_b = r.chance(70) ? OwnedRescale() : OwnedRescale(r, outputs, 1e6, 1e4);
    const LookupTables lookup_view = tables.view();
    const Addition addition_view = {a.view(), rescale_a.view(), rescale_b.view(), sum.view()};

    LinearSpec spec{};
    spec.inputs = inputs, spec.outputs = outputs;
    spec.weight = weight.data(), spec.weight_type = weight_type, spec.bias = bias.data();
    spec.x = x.view(), spec.rescale = rescale.view(), spec.out = out.view();
    if (mode == 1) spec.lookup = &lookup_view;
    if (mode == 2) spec.addition = &addition_view;
    const auto plan = kernels.make_linear(spec);

    const size_t x_stride = inputs + static_cast<size_t>(r.in(0, 9)),
                 out_stride = outputs + static_cast<size_t>(r.in(0, 9));
    const size_t a_stride = outputs + static_cast<size_t>(r.in(0, 9));
    Codes input(x.type, (rows - 1) * x_stride + inputs), addend(a.type, (rows - 1) * a_stride + outputs);
    input.randomize(r, x.low, x.high), addend.randomize(r, a.low, a.high);
    Codes result(mode == 0   ? out.type
                 : mode == 1 ? tables.tables.type
                             : sum.type,
                 (rows - 1) * out_stride + outputs, untouched);
    const size_t first = r.chance(30) ? static_cast<size_t>(r.in(0, static_cast<int64_t>(outputs - 1) / 64)) * 64 : 0;
    const size_t last = r.chance(30) && first + 64 < outputs ? first + 64 : outputs;
    Scratch scratch(kernels.linear_scratch(*plan));
    kernels.linear(*plan, {rows, input.data(), x_stride, addend.data(), a_stride, result.data(), out_stride, first,
                           last, scratch.memory});

    expect_rows(kernels, "linear", seed, result, rows, out_stride, first, last, [&](size_t row, size_t c) {
        int64_t acc = bias[c];
        for (size_t k = 0; k < inputs; ++k) acc += input.get(row * x_stride + k) * weight.get(c * inputs + k);
        const int64_t code = clamp(rescale(acc, c) + out.zero_of(c), out.low, out.high);
        if (mode == 0) return code;
        if (mode == 1) {
            return tables.tables.get(static_cast<size_t>(tables.table_of[c]) * tables.codes +
                                     static_cast<size_t>(code - out.low));
        }
        const int64_t other = addend.get(row * a_stride + c) - a.zero_of(c);
        return clamp(rescale_a(other, c) + rescale_b(code - out.zero_of(c), c) + sum.zero_of(c), sum.low, sum.high);
    });
}

// Sums one below, at and one above a tie, as large as they can be at each width of significands.
void linear_ties(const Kernels& kernels) {
    for (int shift = 21; shift <= 52; ++shift) {
        const int width = shift - 21;  // rescaling divides by 2^width
        std::vector<int32_t> bias;
        for (int bits = 20; bits <= 30; ++bits) {
            for (const int64_t sign : {1, -1}) {
                for (const int64_t beside : {-1, 0, 1}) {
                    const int64_t whole = (int64_t{1} << bits) >> width << width;
                    const int64_t half = width > 0 ? int64_t{1} << (width - 1) : 0;
                    const int64_t sum = sign * (whole + half) + beside;
                    if (std::llabs(sum) < int64_t{1} << 31) bias.push_back(static_cast<int32_t>(sum));
                }
            }
        }
        for (const int32_t only : bias) {  // one output: its own bound decides how it is computed
            const int8_t weight = 0, x = 1;
            const int32_t multiplier = 1 << 21, zero = 0;
            const auto places = static_cast<uint8_t>(shift);
            const Grid grid = {Type::i8, -128, 127, &zero, 1};
            const auto plan =
                kernels.make_linear({1, 1, &weight, Type::i8, &only, grid, {&multiplier, &places, 1}, grid});
            Scratch scratch(kernels.linear_scratch(*plan));
            int8_t got = 0;
            kernels.linear(*plan, {1, &x, 1, nullptr, 0, &got, 1, 0, 1, scratch.memory});
            const int64_t half = width > 0 ? int64_t{1} << (width - 1) : 0;
            const int64_t want = clamp((int64_t{only} + half) >> width, -128, 127);
            if (got != want) fail(kernels, "linear of a sum near a tie", static_cast<uint64_t>(shift), 0, 0, got, want);
        }
    }
}

}  // namespace test
