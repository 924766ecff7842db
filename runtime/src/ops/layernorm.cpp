// LayerNorm in integers.
#include "ops/check.hpp"
#include "ops/constants.hpp"
#include "ops/rows.hpp"

namespace vitquant {
namespace {

void check_layernorm(Check& check) {
    const Value& x = check.in();
    check.tokens(x);
    const int64_t c = x.shape[1], headroom = check.op().number("headroom");
    check.shape({x.shape[0], c});
    const Range gain = range_of(check.constant("gain", {c})), offset = range_of(check.constant("offset", {c}));
    const Range shift = range_of(check.constant("shift", {c}));
    const int64_t epsilon = check.constant("epsilon", {1}).at(0), spread = x.high - x.low;
    if (spread >= 65536 || headroom < 0 || headroom > 60 || headroom % 2 || epsilon < 0)
        check.fail("not an integer LayerNorm",
                   "headroom " + std::to_string(headroom) + ", epsilon " + std::to_string(epsilon));
    const Wide half = spread / 2 + 1;
    if (c > 4096 || ((Wide{c} * c * c * half * half) << headroom) + epsilon >= Wide{1} << 62)
        check.fail("integer LayerNorm would overflow",
                   std::to_string(c) + " channels, headroom " + std::to_string(headroom));
    const int64_t most_gain = int64_t{1} << 36, most_offset = int64_t{1} << 60;
    if (gain.low < -most_gain || gain.high > most_gain || offset.low < -most_offset || offset.high > most_offset ||
        shift.low < 1 || shift.high > 42)
        check.fail("gain, offset or shift out of range");
}

class LayerNorm final : public RowStep {
public:
    LayerNorm(const Operation& op, const Context& context)
        : RowStep(op, context), kernels_(context.kernels), x_(lines(op.reads[0], context)) {
        Constants constants(op);
        plan_ = kernels_.make_layernorm({x_.width, kernel_grid(context.value(op.reads[0])),
                                         constants.get<int64_t>("gain"), constants.get<int64_t>("offset"),
                                         constants.get<uint8_t>("shift"), op.constant("epsilon").at(0),
                                         static_cast<int>(op.number("headroom")), kernel_grid(op.out)});
        if (kernels::is_quick(*plan_)) code = kernels_.name;
    }

    void run_rows(const Frame& frame, Rows rows) const override {
        for_rows(rows, [&](size_t image, size_t row, size_t count) {
            kernels_.layernorm(*plan_, count, x_.at(input(frame, 0), image, row), x_.between,
                               out_.at(output(frame), image, row), out_.between);
        });
    }

private:
    const kernels::Kernels& kernels_;
    Lines x_;
    kernels::Owned<kernels::LayerNormPlan> plan_;
};

}  // namespace

const std::vector<OperationKind>& layernorm_kinds() {
    static const std::vector<OperationKind> kinds = {
        {"layernorm",
         {"x"},
         {"headroom"},
         {},
         {{"gain", {DType::int64}}, {"offset", {DType::int64}}, {"shift", {DType::uint8}}, {"epsilon", {DType::int64}}},
         check_layernorm,
         make<LayerNorm>,
         true},
    };
    return kinds;
}

}  // namespace vitquant
