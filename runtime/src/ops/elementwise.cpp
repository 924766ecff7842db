// Operations on each code by itself: requantization, addition, product, look-up.
#include "kernels/scalar.hpp"
#include "ops/check.hpp"
#include "ops/constants.hpp"
#include "ops/rows.hpp"

namespace vitquant {
namespace {

// ---- requantize: some of the channels at another scale ----

void check_requantize(Check& check) {
    const Value &x = check.in(), &out = check.out();
    check.tokens(x), check.tokens(out);
    const int64_t width = out.shape[1], start = check.op().number("start");
    check.shape({x.shape[0], width});
    if (start < 0 || start > x.shape[1] || start + width > x.shape[1])
        check.fail("there are not so many channels", span(start, start), "of " + std::to_string(x.shape[1]));
    check.rescale(width);
}

class Requantize final : public RequantizedRowStep {
public:
    Requantize(const Operation& op, const Context& context)
        : RequantizedRowStep(op, context, context.value(op.reads[0]).centred_limit()),
          start_(size_t(op.number("start"))), zero_(context.value(op.reads[0]).spread_zero()) {}

private:
    void make_row(const Frame& frame, size_t image, size_t row, int32_t* numbers) const override {
        const int32_t *x = load(frame, 0, image, row) + start_, *zero = zero_.data() + start_;
        for (size_t c = 0; c < width(); ++c) numbers[c] = x[c] - zero[c];
    }

    size_t start_;
    std::vector<int32_t> zero_;
};

// ---- add: two values of different scales ----

void check_add(Check& check) {
    const Value &a = check.in(0), &b = check.in(1);
    check.tokens(a);
    if (a.shape != b.shape)
        check.fail("the addends differ in shape", describe_shape(a.shape) + ", " + describe_shape(b.shape));
    check.shape(a.shape);
    check.rescale(a.shape[1], "_a");
    check.rescale(a.shape[1], "_b");
}

class Add final : public ScalarRowStep {
public:
    Add(const Operation& op, const Context& context)
        : ScalarRowStep(op, context), zero_a_(context.value(op.reads[0]).spread_zero()),
          zero_b_(context.value(op.reads[1]).spread_zero()), a_(op, op.out.shape[1], "_a"),
          b_(op, op.out.shape[1], "_b") {}

private:
    void make_row(const Frame& frame, size_t image, size_t row, int64_t* codes) const override {
        const int32_t *a = load(frame, 0, image, row), *b = load(frame, 1, image, row);
        for (size_t c = 0; c < width(); ++c)
            codes[c] = kernels::sum_of(a_.at, int64_t{a[c]} - zero_a_[c], b_.at, int64_t{b[c]} - zero_b_[c], c);
    }

    std::vector<int32_t> zero_a_, zero_b_;
    Requantization a_, b_;
};

// ---- multiply: two values, code by code ----

void check_multiply(Check& check) {
    const Value &a = check.in(0), &b = check.in(1);
    check.tokens(a);
    if (a.shape != b.shape)
        check.fail("the factors differ in shape", describe_shape(a.shape) + ", " + describe_shape(b.shape));
    check.shape(a.shape);
    check.rescale(a.shape[1]);
    check.operand(0, std::max(a.centred_limit(), b.centred_limit()));
    check.accumulator(Wide{a.centred_limit()} * b.centred_limit());
}

class Multiply final : public RequantizedRowStep {
public:
    Multiply(const Operation& op, const Context& context)
        : RequantizedRowStep(op, context,
                             context.value(op.reads[0]).centred_limit() * context.value(op.reads[1]).centred_limit()),
          zero_a_(context.value(op.reads[0]).spread_zero()), zero_b_(context.value(op.reads[1]).spread_zero()) {}

private:
    void make_row(const Frame& frame, size_t image, size_t row, int32_t* numbers) const override {
        const int32_t *a = load(frame, 0, image, row), *b = load(frame, 1, image, row);
        const int32_t *zero_a = zero_a_.data(), *zero_b = zero_b_.data();
        for (size_t c = 0; c < width(); ++c) numbers[c] = (a[c] - zero_a[c]) * (b[c] - zero_b[c]);
    }

    std::vector<int32_t> zero_a_, zero_b_;
};

// ---- lookup: any function of a code, by tables ----

void check_lookup(Check& check) {
    const Value &x = check.in(), &out = check.out();
    check.tokens(x);
    check.shape(x.shape);
    const Tensor& tables = check.constant("tables", {kAny, x.high - x.low + 1});
    const Range codes = range_of(tables);
    if (codes.low < out.low || codes.high > out.high)
        check.fail_constant("tables", "out of range", span(codes.low, codes.high), span(out.low, out.high));
    const Range used = range_of(check.constant("table_of", {x.shape[1]}));
    if (used.low < 0 || used.high >= tables.shape[0])
        check.fail_constant("table_of", "there are not so many tables", span(used.low, used.high));
}

class Lookup final : public ScalarRowStep {
public:
    Lookup(const Operation& op, const Context& context)
        : ScalarRowStep(op, context), table_of_(op.constant("table_of").to<int32_t>()) {
        const Value& x = context.value(op.reads[0]);
        const Tensor& tables = op.constant("tables");
        bytes_.assign(tables.data, tables.data + size_t(tables.count) * size_of(tables.type));
        table_.bytes = bytes_.data(), table_.table_of = table_of_.data();
        table_.codes = size_t(x.high - x.low + 1), table_.low = static_cast<int32_t>(x.low);
        table_.type = kernel_type(tables.type);
    }

private:
    void make_row(const Frame& frame, size_t image, size_t row, int64_t* codes) const override {
        const int32_t* x = load(frame, 0, image, row);
        for (size_t c = 0; c < width(); ++c) codes[c] = kernels::look_up(table_, x[c], c);
    }

    std::vector<uint8_t> bytes_;
    std::vector<int32_t> table_of_;
    kernels::LookupTable table_{};
};

}  // namespace

const std::vector<OperationKind>& elementwise_kinds() {
    static const std::vector<OperationKind> kinds = {
        {"requantize", {"x"}, {"start"}, {}, {kMultiplier, kShift}, check_requantize, make<Requantize>, true},
        {"add",
         {"a", "b"},
         {},
         {},
         {{"multiplier_a", {DType::int32}},
          {"shift_a", {DType::uint8}},
          {"multiplier_b", {DType::int32}},
          {"shift_b", {DType::uint8}}},
         check_add,
         make<Add>,
         true},
        {"multiply", {"a", "b"}, {}, {}, {kMultiplier, kShift}, check_multiply, make<Multiply>, true},
        {"lookup", {"x"}, {}, {}, {{"tables", {}}, {"table_of", {DType::int32}}}, check_lookup, make<Lookup>, true},
    };
    return kinds;
}

}  // namespace vitquant
