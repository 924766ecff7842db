#include "tensor.hpp"

namespace vitquant {

size_t size_of(DType type) {
    switch (type) {
        case DType::int8:
        case DType::uint8: return 1;
        case DType::int16: return 2;
        case DType::int32:
        case DType::float32: return 4;
        case DType::int64: return 8;
    }
    return 0;
}

const char* name_of(DType type) {
    switch (type) {
        case DType::int8: return "int8";
        case DType::uint8: return "uint8";
        case DType::int16: return "int16";
        case DType::int32: return "int32";
        case DType::int64: return "int64";
        case DType::float32: return "float32";
    }
    return "?";
}

std::string describe_shape(const std::vector<int64_t>& shape) {
    std::string out = "[";
    for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

std::string Tensor::describe() const { return std::string(name_of(type)) + " " + describe_shape(shape); }

}  // namespace vitquant
