// Versions of the format: what the older ones lack, and what is read in its place.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "tensor.hpp"

namespace vitquant {

constexpr int64_t kOldestVersion = 1, kNewestVersion = 3;

constexpr int64_t kPackedVersion = 3;  // the first in which tensors can be packed

bool has_kind(int64_t version, std::string_view kind);

// The number or constant of an operation that files of this version leave out; nothing if they hold it.
std::optional<int64_t> implied_number(int64_t version, std::string_view key);
std::optional<Tensor> implied_constant(int64_t version, std::string_view kind, std::string_view field);

}  // namespace vitquant
