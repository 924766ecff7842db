// Random cases, buffers that notice what is written beside them, and what is common to the naive definitions.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../../src/kernels/kernels.hpp"

namespace test {

using namespace vitquant::kernels;

struct Random {
    std::mt19937_64 engine;
    explicit Random(uint64_t seed) : engine(seed) {}

    int64_t in(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
    bool chance(int percent) { return in(0, 99) < percent; }
    template <class T>
    T of(std::initializer_list<T> choices) {
        return choices.begin()[in(0, static_cast<int64_t>(choices.size()) - 1)];
    }
    // In the range; often at its ends.
    int64_t extreme(int64_t low, int64_t high) {
        if (chance(10)) return low;
        if (chance(10)) return high;
        return in(low, high);
    }
};

inline int64_t lowest(Type t) {
    return t == Type::i8 ? -128 : t == Type::u8 ? 0 : t == Type::i16 ? -32768 : -(1 << 30);
}
inline int64_t highest(Type t) { return t == Type::i8 ? 127 : t == Type::u8 ? 255 : t == Type::i16 ? 32767 : 1 << 30; }

// Numbers of any of the types.
struct Codes {
    Type type;
    std::vector<uint8_t> bytes;

    Codes(Type t, size_t count, uint8_t fill = 0) : type(t), bytes(count * size_of(t), fill) {}
    void* data() { return bytes.data(); }
    size_t size() const { return bytes.size() / size_of(type); }
    int64_t get(size_t i) const {
        const void* p = bytes.data();
        switch (type) {
            case Type::i8: return static_cast<const int8_t*>(p)[i];
            case Type::u8: return static_cast<const uint8_t*>(p)[i];
            case Type::i16: return reinterpret_cast<const int16_t*>(p)[i];
            default: return reinterpret_cast<const int32_t*>(p)[i];
        }
    }
    void set(size_t i, int64_t code) {
        void* p = bytes.data();
        switch (type) {
            case Type::i8: static_cast<int8_t*>(p)[i] = static_cast<int8_t>(code); break;
            case Type::u8: static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(code); break;
            case Type::i16: reinterpret_cast<int16_t*>(p)[i] = static_cast<int16_t>(code); break;
            default: reinterpret_cast<int32_t*>(p)[i] = static_cast<int32_t>(code);
        }
    }
    void randomize(Random& r, int64_t low, int64_t high) {
        const bool extremes = r.chance(25);
        for (size_t i = 0; i < size(); ++i) set(i, extremes ? r.extreme(low, high) : r.in(low, high));
        if (r.chance(5))
            for (size_t i = 0; i < size(); ++i) set(i, r.chance(50) ? low : high);
    }
};

// A grid and the memory of its zero points.
struct OwnedGrid {
    Type type;
    int64_t low, high;
    std::vector<int32_t> zero;
    size_t run;  // channels that share one

    OwnedGrid(Random& r, Type t, size_t channels, bool plain) : type(t), low(lowest(t)), high(highest(t)), run(1) {
        if (r.chance(25)) {  // fewer codes than the type has
            const int64_t a = r.in(low, high), b = r.in(low, high);
            if (a != b) low = a < b ? a : b, high = a < b ? b : a;
        }
        const size_t count = r.chance(40) ? channels : 1;
        run = channels / count;
        for (size_t i = 0; i < count; ++i)
            zero.push_back(static_cast<int32_t>(plain && low <= 0 && high >= 0 ? 0 : r.in(low, high)));
    }
    Grid view() const {
        return {type, static_cast<int32_t>(low), static_cast<int32_t>(high), zero.data(), zero.size()};
    }
    int64_t zero_of(size_t c) const { return zero[c / run]; }
};

// Multipliers that bring numbers up to `limit` to some hundreds or thousands, or anything at all.
struct OwnedRescale {
    std::vector<int32_t> multiplier;
    std::vector<uint8_t> shift;

    OwnedRescale(Random& r, size_t channels, double limit, double target) {
        const size_t count = r.chance(70) ? channels : 1;
        const bool wild = r.chance(15), powers = r.chance(20);
        for (size_t i = 0; i < count; ++i) {
            int n = 21;
            while (n < 52 && limit * 3145728.0 / static_cast<double>(int64_t{1} << n) > target) ++n;
            while (n > 0 && limit * 3145728.0 / static_cast<double>(int64_t{1} << n) < target / 2) --n;
            n += static_cast<int>(r.in(-2, 2));
            if (wild) n = static_cast<int>(r.in(0, 52));
            n = n < 0 ? 0 : n > 52 ? 52 : n;
            shift.push_back(static_cast<uint8_t>(n));
            multiplier.push_back(static_cast<int32_t>(powers ? 1 << 21 : r.extreme(1 << 21, (1 << 22) - 1)));
        }
    }
    OwnedRescale() : multiplier{1 << 21}, shift{21} {}  // one
    Rescale view() const { return {multiplier.data(), shift.data(), multiplier.size()}; }
    int64_t operator()(int64_t x, size_t c) const {
        const size_t i = multiplier.size() == 1 ? 0 : c;
        const __int128 half = shift[i] > 0 ? __int128{1} << (shift[i] - 1) : 0;
        return static_cast<int64_t>((static_cast<__int128>(x) * multiplier[i] + half) >> shift[i]);
    }
};

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Memory aligned to 64 bytes, exactly as much as was asked for.
struct Scratch {
    void* memory;
    explicit Scratch(size_t bytes) : memory(bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr) {}
    ~Scratch() { std::free(memory); }
    Scratch(const Scratch&) = delete;
};

[[noreturn]] inline void fail(const Kernels& k, const std::string& what, uint64_t seed, size_t row, size_t c,
                              int64_t got, int64_t want) {
    std::printf("FAIL %s %s, seed %llu: row %zu channel %zu is %lld, should be %lld\n", k.name, what.c_str(),
                static_cast<unsigned long long>(seed), row, c, static_cast<long long>(got),
                static_cast<long long>(want));
    std::exit(1);
}

constexpr uint8_t untouched = 0xa5;

// Compares rows of codes, and that nothing between them was written.
template <class Want>
void expect_rows(const Kernels& k, const std::string& what, uint64_t seed, const Codes& got, size_t rows, size_t stride,
                 size_t first, size_t last, Want want) {
    const Codes fresh(got.type, 1, untouched);
    for (size_t row = 0; row < rows; ++row) {
        for (size_t c = 0; c < stride && row * stride + c < got.size(); ++c) {
            const int64_t expected = c >= first && c < last ? want(row, c) : fresh.get(0);
            if (got.get(row * stride + c) != expected) fail(k, what, seed, row, c, got.get(row * stride + c), expected);
        }
    }
}

void linear(const Kernels&, uint64_t seed);
void linear_ties(const Kernels&);
void layernorm(const Kernels&, uint64_t seed);
void requantize(const Kernels&, uint64_t seed);
void attention(const Kernels&, uint64_t seed, bool large);
void operations(uint64_t seed);

}  // namespace test
