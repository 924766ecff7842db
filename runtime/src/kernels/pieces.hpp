// Ranges cut into pieces. Private to the file that includes it, like scalar.hpp.
#pragma once

#include <cstddef>

namespace vitquant::kernels {
namespace {

/// `work(begin, count)` for each piece of `first .. last`: of `size`, and what is left.
template <class Work>
inline void in_pieces(std::size_t first, std::size_t last, std::size_t size, const Work& work) {
    for (; first < last; first += size) work(first, last - first < size ? last - first : size);
}

}  // namespace
}  // namespace vitquant::kernels
