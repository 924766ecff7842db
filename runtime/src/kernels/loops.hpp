// Ranges cut into pieces, and loops that are unrolled. Private to the file that includes it, like scalar.hpp.
#pragma once

#include <cstddef>
#include <utility>

#define INLINE __attribute__((always_inline))

namespace vitquant::kernels {
namespace {

// `work(begin, count)` for each piece of `first .. last`: of `size`, and what is left.
template <class Work>
inline void in_pieces(size_t first, size_t last, size_t size, const Work& work) {
    for (; first < last; first += size) work(first, last - first < size ? last - first : size);
}

// An index that is part of its type.
template <int value>
struct Index {
    constexpr operator int() const { return value; }
};

template <class Work, int... i>
inline INLINE void each_of(const Work& work, std::integer_sequence<int, i...>) {
    (work(Index<i>{}), ...);
}

// `work(Index<0>{}) .. work(Index<count - 1>{})`. Arrays whose indices are constants live in registers, which those
// of loops do not, even when the loops are unrolled.
template <int count, class Work>
inline INLINE void each(const Work& work) {
    each_of(work, std::make_integer_sequence<int, count>{});
}

// `work(Index<count>{})`, for a count of 1 to `most`.
template <int most, class Work>
inline void with_index(size_t count, const Work& work) {
    if constexpr (most > 1) {
        if (count < most) return with_index<most - 1>(count, work);
    }
    work(Index<most>{});
}

}  // namespace
}  // namespace vitquant::kernels
