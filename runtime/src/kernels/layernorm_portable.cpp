#include "roots.hpp"
#include "scalar.hpp"

namespace vitquant::kernels::scalar {

void layernorm(const LayerNormPlan& plan, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride) {
    const auto channels = static_cast<int64_t>(plan.channels);
    for (size_t row = 0; row < rows; ++row) {
        const size_t from = row * x_stride, to = row * out_stride;
        int64_t sum = 0, squares = 0;
        for (size_t c = 0; c < plan.channels; ++c) sum += load(x, plan.x_type, from + c);
        for (size_t c = 0; c < plan.channels; ++c) {
            const int64_t centred = load(x, plan.x_type, from + c) * channels - sum;
            squares += centred * centred;
        }
        const Normalizer norm = normalizer(squares, plan.epsilon, plan.headroom, channels);
        const int64_t half = int64_t{1} << (norm.shift - 1);
        for (size_t c = 0; c < plan.channels; ++c) {
            const int64_t centred = load(x, plan.x_type, from + c) * channels - sum;
            const int64_t normalised = (centred * norm.reciprocal + half) >> norm.shift;
            const int64_t scaled = normalised * plan.gain[c] + plan.offset[c] + (int64_t{1} << (plan.shift[c] - 1));
            store(out, plan.type, to + c, clamp((scaled >> plan.shift[c]) + plan.zero[c], plan.low, plan.high));
        }
    }
}

}  // namespace vitquant::kernels::scalar
