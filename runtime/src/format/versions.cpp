#include "format/versions.hpp"

namespace vitquant {

bool has_kind(int64_t version, std::string_view kind) {
    if (version > 1) return true;
    for (std::string_view newer : {"rotary", "multiply", "constant", "gather", "softmax_diffusion"})
        if (kind == newer) return false;
    return true;
}

std::optional<int64_t> implied_number(int64_t version, std::string_view key) {
    if (version > 1 || key != "windows") return std::nullopt;
    return 1;
}

std::optional<Tensor> implied_constant(int64_t version, std::string_view kind, std::string_view field) {
    if (version > 1 || kind != "scores" || field != "table") return std::nullopt;
    static const uint8_t zero = 0;
    return Tensor{DType::int8, {1, 1, 1}, &zero, 1};
}

}  // namespace vitquant
