// The integer program: a list of operations between named tensors of codes, as in its files.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tensor.hpp"

namespace vitquant {

// A tensor of codes in [low, high], of one image; scale and zero point have one element for each of as many runs of
// neighbours along the last axis, or along the heads.
struct Value {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t low = 0, high = 0;
    std::vector<float> scale;
    std::vector<std::int32_t> zero_point;

    std::int64_t axis_length() const { return shape.size() == 3 ? shape[0] : shape.back(); }
    std::int64_t elements() const;
    DType type() const;  // the narrowest that holds the codes
    std::int64_t centred_limit() const;  // largest |code - zero point|, at least 1
    bool is_plain() const;  // whether the zero point is 0 everywhere
    std::int32_t zero_at(std::int64_t place) const {
        return zero_point[std::size_t(place / (axis_length() / std::int64_t(zero_point.size())))];
    }
    std::vector<std::int32_t> spread_zero() const;  // one for each place of the axis
};

enum class Kind : std::uint8_t {
    patches, linear, embed, layernorm, requantize, scores, softmax_row, softmax_uniform, softmax_log2, mix, add,
    lookup, take, pool
};

struct Operation {
    Kind kind;
    std::string name;  // of the kind, as in files
    Value out;
    std::vector<std::string> reads;
    std::map<std::string, std::int64_t, std::less<>> numbers;
    std::map<std::string, Tensor, std::less<>> constants;

    std::int64_t number(std::string_view key) const { return numbers.find(key)->second; }
    const Tensor& constant(std::string_view key) const { return constants.find(key)->second; }
};

struct Program {
    Value image;
    std::vector<Operation> operations;
    std::string output;
    std::string metadata;  // JSON
};

// What an operation of a kind consists of in files, beside its value.
struct Form {
    Kind kind;
    const char* name;
    std::vector<std::string_view> reads, numbers, flags, constants;
};

const std::vector<Form>& forms();

}  // namespace vitquant
