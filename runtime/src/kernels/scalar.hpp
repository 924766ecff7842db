// One code at a time. Everything here is private to the file that includes it, so that none of it is shared between
// files of different instruction sets.
#pragma once

#include "plans.hpp"

namespace vitquant::kernels {
namespace {

// Where a channel's constants are when the low halves of all 128-bit lanes of sixteen come first.
inline size_t interleaved(size_t c) { return c / 16 * 16 + c % 4 / 2 * 8 + c % 16 / 4 * 2 + c % 2; }

inline int32_t load(const void* data, Type type, size_t i) {
    switch (type) {
        case Type::i8: return static_cast<const int8_t*>(data)[i];
        case Type::u8: return static_cast<const uint8_t*>(data)[i];
        case Type::i16: return static_cast<const int16_t*>(data)[i];
        default: return static_cast<const int32_t*>(data)[i];
    }
}

inline void store(void* data, Type type, size_t i, int64_t code) {
    switch (type) {
        case Type::i8: static_cast<int8_t*>(data)[i] = static_cast<int8_t>(code); break;
        case Type::u8: static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(code); break;
        case Type::i16: static_cast<int16_t*>(data)[i] = static_cast<int16_t>(code); break;
        default: static_cast<int32_t*>(data)[i] = static_cast<int32_t>(code);
    }
}

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

inline int64_t rescale(int64_t x, int64_t multiplier, int shift) {
    const int64_t half = shift > 0 ? int64_t{1} << (shift - 1) : 0;
    return (x * multiplier + half) >> shift;
}

inline int64_t rescale(const Requantizer& r, int64_t x, size_t c) { return rescale(x, r.multiplier[c], r.shift[c]); }

inline int64_t to_code(const Requantizer& r, int64_t x, size_t c) {
    return clamp(rescale(r, x, c) + r.zero[c], r.low, r.high);
}

// Of two numbers less their zero points; the zero point of the sum is a's. Not clamped.
inline int64_t sum_of(const Requantizer& a, int64_t x, const Requantizer& b, int64_t y, size_t c) {
    return rescale(a, x, c) + rescale(b, y, c) + a.zero[c];
}

inline int64_t look_up(const LookupTable& plan, int32_t code, size_t c) {
    const size_t i = static_cast<size_t>(plan.table_of[c]) * plan.codes + static_cast<size_t>(code - plan.low);
    return load(plan.bytes, plan.type, i);
}

// All steps after the products.
inline void finish(const LinearPlan& plan, const LinearRun& run, int32_t product, size_t row, size_t c) {
    const int64_t code = to_code(plan.requantizer, product, c);
    const size_t at = row * run.out_stride + c;
    if (plan.has_addition) {
        const AdditionPlan& addition = plan.addition;
        const int64_t a = int64_t{load(run.addend, addition.a_type, row * run.addend_stride + c)} - addition.zero_a[c];
        const int64_t sum = sum_of(addition.a, a, addition.b, code - addition.zero_b[c], c);
        store(run.out, addition.type, at, clamp(sum, addition.low, addition.high));
    } else if (plan.has_lookup) {
        store(run.out, plan.lookup.type, at, look_up(plan.lookup, static_cast<int32_t>(code), c));
    } else {
        store(run.out, plan.requantizer.type, at, code);
    }
}

}  // namespace
}  // namespace vitquant::kernels
