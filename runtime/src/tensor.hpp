// Constants as they lie in a tensor file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace vitquant {

enum class DType : uint8_t { int8, uint8, int16, int32, int64, float32 };

size_t size_of(DType type);
const char* name_of(DType type);

// A view of elements in row-major order; not necessarily aligned.
struct Tensor {
    DType type = DType::int8;
    std::vector<int64_t> shape;
    const uint8_t* data = nullptr;
    int64_t count = 0;

    template <typename T>
    T raw(int64_t i) const {
        T value;
        std::memcpy(&value, data + i * int64_t(sizeof(T)), sizeof(T));
        return value;
    }

    int64_t at(int64_t i) const;  // an integer, whatever its type

    // All elements as T, whatever their integer type; T must hold them.
    template <typename T>
    std::vector<T> to() const {
        std::vector<T> out(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = static_cast<T>(at(i));
        return out;
    }

    std::string describe() const;  // such as `int8 [384, 588]`
};

inline int64_t Tensor::at(int64_t i) const {
    switch (type) {
        case DType::int8: return raw<int8_t>(i);
        case DType::uint8: return raw<uint8_t>(i);
        case DType::int16: return raw<int16_t>(i);
        case DType::int32: return raw<int32_t>(i);
        case DType::int64: return raw<int64_t>(i);
        case DType::float32: break;
    }
    return 0;
}

std::string describe_shape(const std::vector<int64_t>& shape);

}  // namespace vitquant
