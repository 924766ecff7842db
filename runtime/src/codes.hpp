// Codes of any type as 32-bit integers, and the arithmetic that brings accumulators back to codes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "program.hpp"

namespace vitquant {

// Calls `visit` with a pointer of the codes' own type.
template <typename Visit>
void with_codes(DType type, const std::uint8_t* at, Visit visit) {
    switch (type) {
        case DType::int8: return visit(reinterpret_cast<const std::int8_t*>(at));
        case DType::uint8: return visit(at);
        case DType::int16: return visit(reinterpret_cast<const std::int16_t*>(at));
        default: return visit(reinterpret_cast<const std::int32_t*>(at));
    }
}

template <typename Visit>
void with_codes(DType type, std::uint8_t* at, Visit visit) {
    switch (type) {
        case DType::int8: return visit(reinterpret_cast<std::int8_t*>(at));
        case DType::uint8: return visit(at);
        case DType::int16: return visit(reinterpret_cast<std::int16_t*>(at));
        default: return visit(reinterpret_cast<std::int32_t*>(at));
    }
}

// Codes of one value in memory.
struct Codes {
    DType type;
    std::int64_t low, high;

    explicit Codes(const Value& v) : type(v.type()), low(v.low), high(v.high) {}

    std::size_t bytes(std::size_t count) const { return count * size_of(type); }

    void load(const std::uint8_t* base, std::size_t first, std::size_t count, std::int32_t* out) const {
        with_codes(type, base + bytes(first), [&](const auto* x) {
            for (std::size_t i = 0; i < count; ++i) out[i] = x[i];
        });
    }

    // Clamped to the value's codes. Numbers are int64 or int32.
    template <typename Number>
    void store(const Number* x, std::size_t count, std::uint8_t* base, std::size_t first) const {
        with_codes(type, base + bytes(first), [&](auto* out) {
            using Code = std::remove_reference_t<decltype(*out)>;
            for (std::size_t i = 0; i < count; ++i)
                out[i] = static_cast<Code>(std::clamp(std::int64_t{x[i]}, low, high));
        });
    }
};

// (x * m + 2^(n-1)) >> n for each place, the half left out where n is 0.
class Rescaling {
public:
    Rescaling(const Tensor& multiplier, const Tensor& shift, std::int64_t length)
        : multiplier_(std::size_t(length)), shift_(std::size_t(length)) {
        for (std::int64_t i = 0; i < length; ++i) {
            multiplier_[std::size_t(i)] = static_cast<std::int32_t>(multiplier.at(multiplier.count > 1 ? i : 0));
            shift_[std::size_t(i)] = static_cast<std::uint8_t>(shift.at(shift.count > 1 ? i : 0));
        }
    }

    std::int64_t operator()(std::int64_t x, std::size_t place) const {
        const int n = shift_[place];
        return (x * multiplier_[place] + ((std::int64_t{1} << n) >> 1)) >> n;
    }

private:
    std::vector<std::int32_t> multiplier_;
    std::vector<std::uint8_t> shift_;
};

}  // namespace vitquant
