// Linear layers by products of words, two at a time.
#if defined(__x86_64__)

#include "avx2.hpp"
#include "linear_256.hpp"

namespace vitquant::kernels::avx {
namespace {

struct Words {
    using Input = int16_t;
    static constexpr size_t together = 2;

    static void stage(const uint8_t* x, Type type, size_t inputs, int16_t* to, size_t stride) {
        if (type == Type::i8) {
            for (size_t k = 0; k < inputs; ++k) to[k] = static_cast<int8_t>(x[k]);
        } else {
            for (size_t k = 0; k < inputs; ++k) to[k] = x[k];
        }
        for (size_t k = inputs; k < stride; ++k) to[k] = 0;
    }

    static void multiply(size_t rows, const int16_t* x, size_t x_stride, const int8_t* w, size_t steps,
                         const int32_t* start, Tile& tile) {
        multiply_rows(rows, x, x_stride, w, steps, start, tile);
    }
};

}  // namespace

size_t linear_scratch(const LinearPlan& plan) {
    return plan.packed == nullptr ? scalar::linear_scratch(plan) : staged_rows(plan) * plan.steps * 4;
}

void linear(const LinearPlan& plan, const LinearRun& run) {
    return plan.packed == nullptr ? scalar::linear(plan, run) : run_linear<Words>(plan, run);
}

}  // namespace vitquant::kernels::avx

#endif
