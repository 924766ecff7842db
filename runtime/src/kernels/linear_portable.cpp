#include "scalar.hpp"

namespace vitquant::kernels::scalar {
namespace {

// Wraps around as 32 bits do; the whole sum fits.
template <class X, class W>
int32_t product(const X* x, const W* w, size_t inputs, int32_t bias) {
    auto sum = static_cast<uint32_t>(bias);
    for (size_t k = 0; k < inputs; ++k)
        sum += static_cast<uint32_t>(int32_t{x[k]}) * static_cast<uint32_t>(int32_t{w[k]});
    return static_cast<int32_t>(sum);
}

template <class X, class W>
void multiply(const LinearPlan& plan, const LinearRun& run) {
    const auto* weight = static_cast<const W*>(plan.weight);
    for (size_t row = 0; row < run.rows; ++row) {
        const X* x = static_cast<const X*>(run.x) + row * run.x_stride;
        for (size_t c = run.first; c < run.last; ++c) {
            finish(plan, run, product(x, weight + c * plan.inputs, plan.inputs, plan.bias[c]), row, c);
        }
    }
}

template <class X>
void multiply(const LinearPlan& plan, const LinearRun& run) {
    switch (plan.weight_type) {
        case Type::i8: return multiply<X, int8_t>(plan, run);
        case Type::u8: return multiply<X, uint8_t>(plan, run);
        case Type::i16: return multiply<X, int16_t>(plan, run);
        case Type::i32: return multiply<X, int32_t>(plan, run);
    }
}

}  // namespace

size_t linear_scratch(const LinearPlan&) { return 0; }

void linear(const LinearPlan& plan, const LinearRun& run) {
    switch (plan.x_type) {
        case Type::i8: return multiply<int8_t>(plan, run);
        case Type::u8: return multiply<uint8_t>(plan, run);
        case Type::i16: return multiply<int16_t>(plan, run);
        case Type::i32: return multiply<int32_t>(plan, run);
    }
}

}  // namespace vitquant::kernels::scalar
