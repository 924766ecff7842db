// The integer program: a list of operations between named tensors of integer values ("codes"), as in its files.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tensor.hpp"

namespace vitquant {

// A tensor of codes in [low, high], of one image; scale and zero point have one element for each of as many runs of
// neighbours along the last axis, or along the heads.
struct Value {
    std::string name;
    std::vector<int64_t> shape;
    int64_t low = 0, high = 0;
    std::vector<float> scale;
    std::vector<int32_t> zero_point;

    int64_t axis_length() const { return shape.size() == 3 ? shape[0] : shape.back(); }
    int64_t elements() const;
    DType type() const;             // the narrowest that holds the codes
    int64_t centred_limit() const;  // largest |code - zero point|, at least 1
    bool is_plain() const;          // whether the zero point is 0 everywhere
    int32_t zero_at(int64_t place) const {
        return zero_point[size_t(place / (axis_length() / int64_t(zero_point.size())))];
    }
    std::vector<int32_t> spread_zero() const;  // one for each place of the axis
};

struct OperationKind;  // ops/kind.hpp

struct Operation {
    const OperationKind* kind;
    Value out;
    std::vector<std::string> reads;
    std::map<std::string, int64_t, std::less<>> numbers;
    std::map<std::string, Tensor, std::less<>> constants;

    bool is(std::string_view kind_name) const;
    int64_t number(std::string_view key) const { return numbers.find(key)->second; }
    const Tensor& constant(std::string_view key) const { return constants.find(key)->second; }
};

// A value that the program gives, less its zero points: one vector for the whole image if `pooled`.
struct Output {
    std::string name, value;
    bool pooled = false;
};

// Vectors that stay where they are while the program moves.
using UnpackedMemory = std::vector<std::unique_ptr<const std::vector<int8_t>>>;

struct Program {
    Value image;
    std::vector<Operation> operations;
    std::vector<Output> outputs;  // the first is the one that is given if nothing else is asked for
    std::string metadata;         // JSON

    UnpackedMemory unpacked;  // constants that are no views of the tensor file
};

}  // namespace vitquant
