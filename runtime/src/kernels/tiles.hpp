// What kernels of tiles have in common, whatever the vectors: tiles of sums of products, requantized and stored.
//
// `V` is a small trait of an instruction set, `Avx2`, `AvxVnni` or `Neon`:
//   rows, unit               the rows of a tile, and what numbers of inputs are padded to in attention
//   LinearInput              inputs of linear layers as they are multiplied
//   Query, Key, Weight, Val  operands of attention as they are multiplied: less their zero points where `centred`, else
//                            only moved into the range of their type
//   multiply<rows>(...)      a tile of products
//   Ints, lanes              a vector of sums, and how many it holds: load, store, same, add, sub, ...
//   Factors, rescaled        exact requantization by a narrow requantizer
//   Bytes, bytes             a vector of bytes, and how many it holds: look-ups, maxima, sums
//   Words                    numbers of 16 bits for a vector of bytes: those of even places, and those of odd ones
//   Token, normalized        LayerNorm of sixteen channels
#pragma once

#include "loops.hpp"
#include "scalar.hpp"

namespace vitquant::kernels {
namespace {

constexpr size_t tile_columns = 16;

template <int rows>
struct alignas(32) Sums {
    int32_t sum[rows][tile_columns];
};

template <class V>
using Tile = Sums<V::rows>;

// How many inputs of a channel lie next to each other in packed weights: as many as make up 32 bits.
template <class Input>
constexpr size_t together = 4 / sizeof(Input);

// What is taken off codes so that they fit the type that is multiplied; the bias makes good for it.
template <class Input>
int32_t moved_by(Type type) {
    if constexpr (sizeof(Input) > 1) return 0;
    if constexpr (Input(-1) < Input(0)) return type == Type::u8 ? 128 : 0;
    return type == Type::i8 ? -128 : 0;
}

template <class V, class Input, class Weight>
inline void multiply(size_t rows, const Input* x, size_t x_stride, const Weight* w, size_t inputs, const int32_t* start,
                     Tile<V>& tile) {
    with_index<V::rows>(rows, [&](auto count) { V::template multiply<count>(x, x_stride, w, inputs, start, tile); });
}

// Replaces each sum of some columns by what `change` makes of it.
template <class V, class Change>
inline void change_columns(Tile<V>& tile, size_t rows, size_t column, const Change& change) {
    for (size_t i = 0; i < rows; ++i) {
        int32_t* at = tile.sum[i] + column;
        V::store(at, change(V::load(at), i));
    }
}

// Writes up to sixteen elements of `size` bytes: `write` writes sixteen.
template <class Write>
inline void write_columns(void* out, size_t size, size_t columns, const Write& write) {
    if (columns >= tile_columns) return write(static_cast<uint8_t*>(out));
    alignas(32) uint8_t all[4 * tile_columns];
    write(all);
    __builtin_memcpy(out, all, columns * size);
}

// Sixteen codes of one byte, of which `columns` are written.
template <class V>
inline void store_bytes(const int32_t* codes, size_t columns, uint8_t* out) {
    write_columns(out, 1, columns, [&](uint8_t* to) INLINE { V::to_bytes(codes, to); });
}

}  // namespace
}  // namespace vitquant::kernels
