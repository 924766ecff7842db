#include "ops/constants.hpp"

namespace vitquant {
namespace {

std::vector<int32_t> spread(const Tensor& t, int64_t length) {
    std::vector<int32_t> out;
    for (int64_t i = 0; i < length; ++i) out.push_back(static_cast<int32_t>(t.at(t.count > 1 ? i : 0)));
    return out;
}

}  // namespace

kernels::Type kernel_type(DType type) {
    switch (type) {
        case DType::int8: return kernels::Type::i8;
        case DType::uint8: return kernels::Type::u8;
        case DType::int16: return kernels::Type::i16;
        default: return kernels::Type::i32;
    }
}

kernels::Grid kernel_grid(const Value& v) {
    return {kernel_type(v.type()), static_cast<int32_t>(v.low), static_cast<int32_t>(v.high), v.zero_point.data(),
            v.zero_point.size()};
}

const void* Constants::any(const std::string& key) {
    switch (op_.constant(key).type) {
        case DType::int16: return get<int16_t>(key);
        case DType::int32: return get<int32_t>(key);
        default: return get<int8_t>(key);
    }
}

kernels::Rescale Constants::rescale(const std::string& suffix) {
    return {get<int32_t>("multiplier" + suffix), get<uint8_t>("shift" + suffix),
            size_t(op_.constant("multiplier" + suffix).count)};
}

kernels::LookupTables Constants::tables() {
    return {any("tables"), size_t(op_.constant("tables").shape[0]), get<int32_t>("table_of"),
            kernel_type(op_.out.type())};
}

Requantization::Requantization(const Operation& op, int64_t length, const std::string& suffix)
    : multiplier_(spread(op.constant("multiplier" + suffix), length)),
      shift_(spread(op.constant("shift" + suffix), length)), zero_(op.out.spread_zero()) {
    at.multiplier = multiplier_.data(), at.shift = shift_.data(), at.zero = zero_.data();
    at.low = static_cast<int32_t>(op.out.low), at.high = static_cast<int32_t>(op.out.high);
    at.type = kernel_type(op.out.type());
}

}  // namespace vitquant
