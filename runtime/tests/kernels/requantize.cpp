#include "check.hpp"

namespace test {

void requantize(const Kernels& kernels, uint64_t seed) {
    Random r(seed);
    const auto rows = static_cast<size_t>(r.in(1, 7)), channels = static_cast<size_t>(r.in(1, 200));
    const int64_t limit = r.of({int64_t{300}, int64_t{1} << 16, int64_t{1} << 24, int64_t{0x7fffffff}});
    const OwnedGrid out(r, r.of({Type::i8, Type::u8, Type::i16, Type::i32}), channels, r.chance(50));
    const OwnedRescale rescale(r, channels, static_cast<double>(limit), r.of({200.0, 2000.0, 100000.0}));
    const auto plan = kernels.make_requantize({channels, limit, rescale.view(), out.view()});
    const size_t stride = channels + static_cast<size_t>(r.in(0, 9)),
                 out_stride = channels + static_cast<size_t>(r.in(0, 9));
    std::vector<int32_t> x((rows - 1) * stride + channels);
    for (int32_t& number : x) number = static_cast<int32_t>(r.extreme(-limit, limit));
    Codes result(out.type, (rows - 1) * out_stride + channels, untouched);
    kernels.requantize(*plan, rows, x.data(), stride, result.data(), out_stride);
    expect_rows(kernels, "requantize", seed, result, rows, out_stride, 0, channels, [&](size_t row, size_t c) {
        return clamp(rescale(x[row * stride + c], c) + out.zero_of(c), out.low, out.high);
    });
}

}  // namespace test
