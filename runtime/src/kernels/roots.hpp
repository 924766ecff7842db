// What LayerNorm needs once a token.
#pragma once

#include <cmath>
#include <cstdint>

namespace vitquant::kernels {
namespace {

// `floor(sqrt(x))`, 0 <= x < 2^62. Both roundings, of x to a double and of its root, may lift the root to the next
// whole number, and neither takes it below the one it should be.
inline int64_t isqrt(int64_t x) {
    const auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(x)));
    return root * root > x ? root - 1 : root;
}

inline int bit_length(int64_t x) { return x == 0 ? 0 : 64 - __builtin_clzll(static_cast<unsigned long long>(x)); }

constexpr int norm_fraction = 20;    // fractional bits of the normalised value
constexpr int norm_reciprocal = 54;  // fractional bits of one over the standard deviation

struct Normalizer {
    int64_t reciprocal;
    int shift;  // what to shift (x - mean) * channels * reciprocal by, rounding, for the normalised value
};

// `squares` is the sum of the squares of channels * (x - mean). The reciprocal is at most 2^30, with up to 2^12
// channels, unless all codes of the token are the same: then it multiplies zeros.
inline Normalizer normalizer(int64_t squares, int64_t epsilon, int headroom, int64_t channels) {
    const int64_t power = (squares << headroom) + epsilon;
    int k = (62 - bit_length(power)) >> 1;
    if (k > 30 - headroom / 2) k = 30 - headroom / 2;
    int64_t deviation = isqrt((power << (2 * k)) / channels);
    if (deviation < 1) deviation = 1;
    return {(int64_t{1} << norm_reciprocal) / deviation, norm_reciprocal - norm_fraction - k - headroom / 2};
}

}  // namespace
}  // namespace vitquant::kernels
