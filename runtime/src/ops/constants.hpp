// The constants of operations as arithmetic takes them.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "kernels/plans.hpp"
#include "program.hpp"

namespace vitquant {

kernels::Type kernel_type(DType type);
kernels::Grid kernel_grid(const Value& value);  // points into the value

// Constants in the types and at the addresses that kernels want, for as long as a plan is being made.
class Constants {
public:
    explicit Constants(const Operation& op) : op_(op) {}

    template <typename T>
    const T* get(const std::string& key) {
        const Tensor& tensor = op_.constant(key);
        if constexpr (sizeof(T) == 1) return reinterpret_cast<const T*>(tensor.data);
        // A file need not align what is wider than a byte.
        kept_.emplace_back((size_t(tensor.count) * sizeof(T) + 7) / 8);
        std::memcpy(kept_.back().data(), tensor.data, size_t(tensor.count) * sizeof(T));
        return reinterpret_cast<const T*>(kept_.back().data());
    }

    const void* any(const std::string& key);
    kernels::Rescale rescale(const std::string& suffix = "");
    kernels::LookupTables tables();

private:
    const Operation& op_;
    std::deque<std::vector<int64_t>> kept_;
};

// The constants of a requantization to the result of an operation, one for each channel or head, in memory of their
// own. `at` is what the scalar functions take; it is valid as long as this object stays where it is.
class Requantization {
public:
    Requantization(const Operation& op, int64_t length, const std::string& suffix = "");
    Requantization(const Requantization&) = delete;
    Requantization& operator=(const Requantization&) = delete;

    kernels::Requantizer at{};

private:
    std::vector<int32_t> multiplier_, shift_, zero_;
};

}  // namespace vitquant
