#include "scalar.hpp"

namespace vitquant::kernels::scalar {

void requantize(const RequantizePlan& plan, size_t rows, const int32_t* x, size_t x_stride, void* out,
                size_t out_stride) {
    const Requantizer& r = plan.requantizer;
    for (size_t row = 0; row < rows; ++row, x += x_stride) {
        for (size_t c = 0; c < plan.channels; ++c) store(out, r.type, row * out_stride + c, to_code(r, x[c], c));
    }
}

}  // namespace vitquant::kernels::scalar
