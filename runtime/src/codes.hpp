// Codes of any type, as 32-bit integers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "program.hpp"

namespace vitquant {

// Calls `visit` with a pointer of the codes' own type.
template <typename Visit>
void with_codes(DType type, const uint8_t* at, Visit visit) {
    switch (type) {
        case DType::int8: return visit(reinterpret_cast<const int8_t*>(at));
        case DType::uint8: return visit(at);
        case DType::int16: return visit(reinterpret_cast<const int16_t*>(at));
        default: return visit(reinterpret_cast<const int32_t*>(at));
    }
}

template <typename Visit>
void with_codes(DType type, uint8_t* at, Visit visit) {
    switch (type) {
        case DType::int8: return visit(reinterpret_cast<int8_t*>(at));
        case DType::uint8: return visit(at);
        case DType::int16: return visit(reinterpret_cast<int16_t*>(at));
        default: return visit(reinterpret_cast<int32_t*>(at));
    }
}

// How the codes of a value lie in memory.
struct Codes {
    DType type;
    int64_t low, high;

    explicit Codes(const Value& v) : type(v.type()), low(v.low), high(v.high) {}

    template <typename Byte>
    Byte* at(Byte* base, size_t element) const {
        return base + element * size_of(type);
    }

    void load(const uint8_t* from, size_t count, int32_t* to) const {
        with_codes(type, from, [&](const auto* x) {
            for (size_t i = 0; i < count; ++i) to[i] = x[i];
        });
    }

    // Codes of another value, which are all in the range of this one.
    void convert(const Codes& other, const uint8_t* from, size_t count, uint8_t* to) const {
        if (type == other.type) return void(std::memcpy(to, from, count * size_of(type)));
        with_codes(other.type, from, [&](const auto* x) { store(x, count, to); });
    }

    // Clamped to the value's range. Numbers are of any type.
    template <typename Number>
    void store(const Number* x, size_t count, uint8_t* to) const {
        with_codes(type, to, [&](auto* out) {
            using Code = std::remove_reference_t<decltype(*out)>;
            for (size_t i = 0; i < count; ++i) out[i] = static_cast<Code>(std::clamp(int64_t{x[i]}, low, high));
        });
    }
};

}  // namespace vitquant
