#include "check.hpp"

namespace test {
namespace {

Type any(Random& r) { return r.of({Type::i8, Type::u8, Type::i16, Type::i32}); }

void add(const Kernels& kernels, uint64_t seed) {
    Random r(seed);
    const size_t rows = static_cast<size_t>(r.in(1, 9)), channels = static_cast<size_t>(r.in(1, 150)),
                 stride = channels + 3;
    const OwnedGrid a(r, any(r), channels, r.chance(50)), b(r, any(r), channels, r.chance(50)),
        sum(r, any(r), channels, r.chance(50));
    const OwnedRescale rescale_a(r, channels, static_cast<double>(a.high - a.low), 3e4),
        rescale_b(r, channels, static_cast<double>(b.high - b.low), 300);
    const auto plan =
        kernels.make_add({channels, {a.view(), rescale_a.view(), rescale_b.view(), sum.view()}, b.view()});
    Codes as(a.type, (rows - 1) * stride + channels), bs(b.type, (rows - 1) * stride + channels);
    Codes result(sum.type, (rows - 1) * stride + channels, untouched);
    as.randomize(r, a.low, a.high), bs.randomize(r, b.low, b.high);
    kernels.add(*plan, rows, as.data(), stride, bs.data(), stride, result.data(), stride);
    expect_rows(kernels, "add", seed, result, rows, stride, 0, channels, [&](size_t row, size_t c) {
        const int64_t x = as.get(row * stride + c) - a.zero_of(c), y = bs.get(row * stride + c) - b.zero_of(c);
        return clamp(rescale_a(x, c) + rescale_b(y, c) + sum.zero_of(c), sum.low, sum.high);
    });
}

void requantize(const Kernels& kernels, uint64_t seed) {
    Random r(seed);
    const size_t rows = static_cast<size_t>(r.in(1, 9)), x_channels = static_cast<size_t>(r.in(1, 150)),
                 stride = x_channels + 3;
    const size_t start = static_cast<size_t>(r.in(0, static_cast<int64_t>(x_channels) - 1));
    const size_t channels = static_cast<size_t>(r.in(1, static_cast<int64_t>(x_channels - start)));
    const OwnedGrid x(r, any(r), x_channels, r.chance(50)), out(r, any(r), channels, r.chance(50));
    const OwnedRescale rescale(r, channels, static_cast<double>(x.high - x.low), 300);
    const auto plan = kernels.make_requantize({x_channels, start, channels, x.view(), rescale.view(), out.view()});
    Codes xs(x.type, (rows - 1) * stride + x_channels), result(out.type, (rows - 1) * stride + channels, untouched);
    xs.randomize(r, x.low, x.high);
    kernels.requantize(*plan, rows, xs.data(), stride, result.data(), stride);
    expect_rows(kernels, "requantize", seed, result, rows, stride, 0, channels, [&](size_t row, size_t c) {
        return clamp(rescale(xs.get(row * stride + start + c) - x.zero_of(start + c), c) + out.zero_of(c), out.low,
                     out.high);
    });
}

void lookup(const Kernels& kernels, uint64_t seed) {
    Random r(seed);
    const size_t rows = static_cast<size_t>(r.in(1, 9)), channels = static_cast<size_t>(r.in(1, 150)),
                 stride = channels + 3;
    const OwnedGrid x(r, r.of({Type::i8, Type::u8, Type::i16}), channels, true);
    const auto codes = static_cast<size_t>(x.high - x.low + 1);
    Codes tables(any(r), 3 * codes);
    tables.randomize(r, lowest(tables.type), highest(tables.type));
    std::vector<int32_t> table_of;
    for (size_t c = 0; c < channels; ++c) table_of.push_back(static_cast<int32_t>(r.in(0, 2)));
    const auto plan = kernels.make_lookup({channels, x.view(), {tables.data(), 3, table_of.data(), tables.type}});
    Codes xs(x.type, (rows - 1) * stride + channels), result(tables.type, (rows - 1) * stride + channels, untouched);
    xs.randomize(r, x.low, x.high);
    kernels.lookup(*plan, rows, xs.data(), stride, result.data(), stride);
    expect_rows(kernels, "lookup", seed, result, rows, stride, 0, channels, [&](size_t row, size_t c) {
        return tables.get(static_cast<size_t>(table_of[c]) * codes +
                          static_cast<size_t>(xs.get(row * stride + c) - x.low));
    });
}

void patches(const Kernels& kernels, uint64_t seed) {
    Random r(seed);
    const auto few = [&] { return static_cast<size_t>(r.in(1, 5)); };
    const size_t height = few(), width = few(), down = few(), across = few();
    const ImageShape image = {few(), height * down, width * across};
    Codes x(Type::u8, image.channels * image.height * image.width);
    x.randomize(r, 0, 255);
    const size_t size = image.channels * height * width, stride = size + few(), count = down * across;
    const size_t first = static_cast<size_t>(r.in(0, static_cast<int64_t>(count) - 1)), rows = count - first;
    Codes result(Type::u8, (rows - 1) * stride + size, untouched);
    kernels.patches(image, height, width, x.bytes.data(), first, count, result.bytes.data(), stride);
    expect_rows(kernels, "patches", seed, result, rows, stride, 0, size, [&](size_t row, size_t i) {
        const size_t patch = first + row, c = i / (height * width), y = i / width % height, z = i % width;
        return x.get((c * image.height + patch / across * height + y) * image.width + patch % across * width + z);
    });
}

}  // namespace

void elementwise(const Kernels& kernels, uint64_t seed) {
    add(kernels, seed);
    requantize(kernels, seed);
    lookup(kernels, seed);
    patches(kernels, seed);
}

}  // namespace test
