#include <cmath>

#include "../../src/kernels/roots.hpp"
#include "check.hpp"

namespace test {
namespace {

int64_t root(int64_t x) {
    int64_t low = 0, high = int64_t{1} << 31;  // by halving
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (middle * middle <= x ? low : high) = middle;
    }
    return low;
}

int length(int64_t x) {
    int bits = 0;
    for (; x > 0; x >>= 1) ++bits;
    return bits;
}

}  // namespace

void layernorm(const Kernels& kernels, uint64_t seed) {
    Random r(seed);
    const int64_t any = r.extreme(1, (int64_t{1} << 31) - 1);
    for (const int64_t x : {any * any - 1, any * any, any * any + 1, r.in(0, (int64_t{1} << 62) - 1)}) {
        if (isqrt(x) != root(x)) fail(kernels, "isqrt", seed, 0, 0, isqrt(x), root(x));
    }
    const size_t rows = static_cast<size_t>(r.in(1, 9));
    const size_t channels = static_cast<size_t>(r.chance(20) ? r.in(200, 1600) : r.in(1, 200));
    const OwnedGrid x(r, r.of({Type::i16, Type::i16, Type::i16, Type::u8}), channels, true);
    const OwnedGrid out(r, r.of({Type::i8, Type::u8, Type::i8, Type::u8, Type::i16}), channels, r.chance(50));
    // The construction of vitquant.numerics.layernorm, for random gamma, beta and scales.
    const int64_t cube = static_cast<int64_t>(channels * channels * channels);
    const double eps_codes = r.of({0.0, 1e-3, 1.0, 400.0}), eps = eps_codes * static_cast<double>(cube);
    int headroom = (62 - length(static_cast<int64_t>(static_cast<double>(cube) * 1073741824.0 + eps))) / 2 * 2;
    headroom = headroom < 0 ? 0 : headroom;
    const auto epsilon = static_cast<int64_t>(std::llround(std::ldexp(eps, headroom)));
    std::vector<int64_t> gain, offset;
    std::vector<uint8_t> shift;
    const int wild = static_cast<int>(r.in(0, 9));  // the first few of ten: gain, shift, everything
    for (size_t c = 0; c < channels; ++c) {
        const int s = static_cast<int>(wild == 1 || wild == 2 ? r.in(1, 42) : wild == 0 ? 42 : r.in(33, 38));
        shift.push_back(static_cast<uint8_t>(s));
        gain.push_back(wild == 0 || wild == 2 ? r.extreme(-(int64_t{1} << 36), int64_t{1} << 36)
                                              : r.extreme(-(1 << 22), 1 << 22));
        const int64_t beta = wild == 2 ? int64_t{1} << 60 : int64_t{200} << s;
        offset.push_back(r.extreme(-beta, beta));
    }
    const auto plan = kernels.make_layernorm(
        {channels, x.view(), gain.data(), offset.data(), shift.data(), epsilon, headroom, out.view()});
    const size_t x_stride = channels + static_cast<size_t>(r.in(0, 9)),
                 out_stride = channels + static_cast<size_t>(r.in(0, 9));
    Codes input(x.type, (rows - 1) * x_stride + channels),
        result(out.type, (rows - 1) * out_stride + channels, untouched);
    input.randomize(r, x.low, x.high);
    for (size_t row = 0; row < rows; ++row) {  // quiet, and constant, tokens
        const int64_t amplitude = r.of({-1, -1, 0, 1, 3, 50}), middle = r.in(x.low, x.high);
        if (amplitude < 0) continue;
        for (size_t c = 0; c < channels; ++c) {
            input.set(row * x_stride + c,
                      clamp(middle + (r.chance(3) ? r.in(-amplitude, amplitude) : 0), x.low, x.high));
        }
    }
    kernels.layernorm(*plan, rows, input.data(), x_stride, result.data(), out_stride);

    const auto count = static_cast<int64_t>(channels);
    std::vector<int64_t> want(rows * channels);
    for (size_t row = 0; row < rows; ++row) {
        int64_t sum = 0, squares = 0;
        for (size_t c = 0; c < channels; ++c) sum += input.get(row * x_stride + c);
        const auto centred = [&](size_t c) { return input.get(row * x_stride + c) * count - sum; };
        for (size_t c = 0; c < channels; ++c) squares += centred(c) * centred(c);
        const int64_t power = (squares << headroom) + epsilon;
        int k = std::min((62 - length(power)) >> 1, 30 - headroom / 2);
        const int64_t deviation = std::max<int64_t>(root((power << (2 * k)) / count), 1);
        k += headroom / 2;
        const int64_t reciprocal = (int64_t{1} << 54) / deviation;
        for (size_t c = 0; c < channels; ++c) {
            const __int128 normalised =
                (static_cast<__int128>(centred(c)) * reciprocal + (__int128{1} << (33 - k))) >> (34 - k);
            const __int128 scaled = (normalised * gain[c] + offset[c] + (__int128{1} << (shift[c] - 1))) >> shift[c];
            want[row * channels + c] = clamp(static_cast<int64_t>(scaled) + out.zero_of(c), out.low, out.high);
        }
    }
    expect_rows(kernels, "layernorm", seed, result, rows, out_stride, 0, channels,
                [&](size_t row, size_t c) { return want[row * channels + c]; });
}

}  // namespace test
