// Rotary position embedding: each channel turned with its partner, by an angle of the token and the channel.
#include "ops/check.hpp"
#include "ops/constants.hpp"
#include "ops/rows.hpp"

namespace vitquant {
namespace {

// The most that a number of magnitude 1 can become.
int64_t largest_turn(const Tensor& cos, const Tensor& sin) {
    int64_t largest = 0;
    for (int64_t i = 0; i < cos.count; ++i) largest = std::max(largest, std::abs(cos.at(i)) + std::abs(sin.at(i)));
    return largest;
}

void check_rotary(Check& check) {
    const Value& x = check.in();
    check.tokens(x);
    check.shape(x.shape);
    const int64_t n = x.shape[0], c = x.shape[1];
    const Tensor& cos = check.constant("cos", {n, kAny});
    const int64_t d = cos.shape[1];
    const Tensor& sin = check.constant("sin", {n, d});
    const Range partner = range_of(check.constant("partner", {d}));
    if (c % d) check.fail("the angles do not fit the channels", std::to_string(d), "a divisor of " + std::to_string(c));
    if (partner.low < 0 || partner.high >= d)
        check.fail_constant("partner", "there are not so many channels", span(partner.low, partner.high),
                            span(0, d - 1));
    check.rescale(c);
    check.operand(0, x.centred_limit());
    check.accumulator(Wide{x.centred_limit()} * largest_turn(cos, sin));
}

class Rotary final : public RequantizedRowStep {
public:
    Rotary(const Operation& op, const Context& context)
        : RequantizedRowStep(
              op, context,
              context.value(op.reads[0]).centred_limit() * largest_turn(op.constant("cos"), op.constant("sin"))),
          zero_(context.value(op.reads[0]).spread_zero()), cos_(op.constant("cos").to<int16_t>()),
          sin_(op.constant("sin").to<int16_t>()), partner_(op.constant("partner").to<int32_t>()) {}

private:
    void make_row(const Frame& frame, size_t image, size_t row, int32_t* numbers) const override {
        int32_t* x = load(frame, 0, image, row);
        for (size_t c = 0; c < width(); ++c) x[c] -= zero_[c];
        const size_t angles = partner_.size();
        const int16_t *cos = cos_.data() + token_of(row) * angles, *sin = sin_.data() + token_of(row) * angles;
        const int32_t* partner = partner_.data();
        for (size_t first = 0; first < width(); first += angles, x += angles)
            for (size_t d = 0; d < angles; ++d) numbers[first + d] = x[d] * cos[d] + x[partner[d]] * sin[d];
    }

    std::vector<int32_t> zero_;
    std::vector<int16_t> cos_, sin_;
    std::vector<int32_t> partner_;
};

}  // namespace

const std::vector<OperationKind>& rotary_kinds() {
    static const std::vector<OperationKind> kinds = {
        {"rotary",
         {"x"},
         {},
         {},
         {{"cos", {DType::int16}}, {"sin", {DType::int16}}, {"partner", {DType::int32}}, kMultiplier, kShift},
         check_rotary,
         make<Rotary>,
         true},
    };
    return kinds;
}

}  // namespace vitquant
