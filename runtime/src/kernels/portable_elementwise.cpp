#include <cstring>

#include "scalar.hpp"

namespace vitquant::kernels::plain {

void add(const AddPlan& plan, size_t rows, const void* a, size_t a_stride, const void* b, size_t b_stride, void* out,
         size_t out_stride) {
    const AdditionPlan& p = plan.addition;
    for (size_t row = 0; row < rows; ++row) {
        for (size_t c = 0; c < plan.channels; ++c) {
            const int64_t centred_a = int64_t{load(a, p.a_type, row * a_stride + c)} - p.zero_a[c];
            const int64_t centred_b = int64_t{load(b, plan.b_type, row * b_stride + c)} - p.zero_b[c];
            store(out, p.type, row * out_stride + c, added(p, centred_a, centred_b, c));
        }
    }
}

void requantize(const RequantizePlan& plan, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride) {
    const Requantizer& r = plan.requantizer;
    for (size_t row = 0; row < rows; ++row) {
        for (size_t c = 0; c < plan.channels; ++c) {
            const int64_t centred = int64_t{load(x, plan.x_type, row * x_stride + plan.start + c)} - plan.zero[c];
            store(out, r.type, row * out_stride + c, to_code(r, centred, c));
        }
    }
}

void lookup(const LookupPlan& plan, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride) {
    for (size_t row = 0; row < rows; ++row) {
        for (size_t c = 0; c < plan.channels; ++c) {
            const int32_t code = load(x, plan.x_type, row * x_stride + c);
            store(out, plan.table.type, row * out_stride + c, look_up(plan.table, code, c));
        }
    }
}

void patches(const ImageShape& image, size_t height, size_t width, const uint8_t* x, size_t first, size_t last,
             uint8_t* out, size_t out_stride) {
    const size_t across = image.width / width;
    for (size_t patch = first; patch < last; ++patch) {
        const size_t top = patch / across * height, left = patch % across * width;
        uint8_t* to = out + (patch - first) * out_stride;
        for (size_t c = 0; c < image.channels; ++c) {
            for (size_t y = 0; y < height; ++y, to += width) {
                std::memcpy(to, x + (c * image.height + top + y) * image.width + left, width);
            }
        }
    }
}

}  // namespace vitquant::kernels::plain
