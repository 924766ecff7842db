// Linear layers by products of bytes, four at a time; all else is as with AVX2.
#if defined(__x86_64__)

#include "avx2.hpp"
#include "linear_256.hpp"

namespace vitquant::kernels::vnni256 {
namespace {

inline __m256i dot(__m256i sum, __m256i x, __m256i w) {
#if defined(VITQUANT_AVXVNNI_BY_AVX512)  // the same instruction in another coding, for tests
    return _mm256_dpbusd_epi32(sum, x, w);
#else
    return _mm256_dpbusd_avx_epi32(sum, x, w);
#endif
}

inline __attribute__((always_inline)) void accumulate(Pair& sum, const uint8_t* x, __m256i w0, __m256i w1) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    const __m256i repeated = _mm256_set1_epi32(four);
    sum.a = dot(sum.a, repeated, w0);
    sum.b = dot(sum.b, repeated, w1);
}

template <int rows>
__attribute__((noinline)) void multiply_bytes(const uint8_t* x, size_t x_stride, const int8_t* w, size_t steps,
                                              const int32_t* start, Tile& tile) {
    const Pair first = {load8(start), load8(start + 8)};
    Pair s0 = first, s1 = first, s2 = first, s3 = first, s4 = first, s5 = first;
    for (size_t k = 0; k < steps; ++k, x += 4, w += 64) {
        const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
        const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
        accumulate(s0, x, w0, w1);
        if constexpr (rows > 1) accumulate(s1, x + x_stride, w0, w1);
        if constexpr (rows > 2) accumulate(s2, x + 2 * x_stride, w0, w1);
        if constexpr (rows > 3) accumulate(s3, x + 3 * x_stride, w0, w1);
        if constexpr (rows > 4) accumulate(s4, x + 4 * x_stride, w0, w1);
        if constexpr (rows > 5) accumulate(s5, x + 5 * x_stride, w0, w1);
    }
    keep(tile.sum[0], s0);
    if constexpr (rows > 1) keep(tile.sum[1], s1);
    if constexpr (rows > 2) keep(tile.sum[2], s2);
    if constexpr (rows > 3) keep(tile.sum[3], s3);
    if constexpr (rows > 4) keep(tile.sum[4], s4);
    if constexpr (rows > 5) keep(tile.sum[5], s5);
}

struct Bytes {
    using Input = uint8_t;
    static constexpr size_t together = 4;

    static void stage(const uint8_t* x, Type type, size_t inputs, uint8_t* to, size_t stride) {
        const uint8_t flip = type == Type::i8 ? 0x80 : 0;  // int8 becomes uint8 by adding 128
        for (size_t k = 0; k < inputs; ++k) to[k] = x[k] ^ flip;
        for (size_t k = inputs; k < stride; ++k) to[k] = 0;
    }

    static void multiply(size_t rows, const uint8_t* x, size_t x_stride, const int8_t* w, size_t steps,
                         const int32_t* start, Tile& tile) {
        switch (rows) {
            case 1: return multiply_bytes<1>(x, x_stride, w, steps, start, tile);
            case 2: return multiply_bytes<2>(x, x_stride, w, steps, start, tile);
            case 3: return multiply_bytes<3>(x, x_stride, w, steps, start, tile);
            case 4: return multiply_bytes<4>(x, x_stride, w, steps, start, tile);
            case 5: return multiply_bytes<5>(x, x_stride, w, steps, start, tile);
            default: return multiply_bytes<6>(x, x_stride, w, steps, start, tile);
        }
    }
};

}  // namespace

void linear(const LinearPlan& plan, const LinearRun& run) {
    return plan.packed == nullptr ? scalar::linear(plan, run) : run_linear<Bytes>(plan, run);
}

}  // namespace vitquant::kernels::vnni256

#endif
