#include "kernel_rows.hpp"

namespace vitquant {

kernels::Type kernel_type(DType type) {
    switch (type) {
        case DType::int8: return kernels::Type::i8;
        case DType::uint8: return kernels::Type::u8;
        case DType::int16: return kernels::Type::i16;
        default: return kernels::Type::i32;
    }
}

kernels::Grid kernel_grid(const Value& v) {
    return {kernel_type(v.type()), static_cast<std::int32_t>(v.low), static_cast<std::int32_t>(v.high),
            v.zero_point.data(), v.zero_point.size()};
}

const void* Constants::any(const std::string& key) {
    switch (op_.constant(key).type) {
        case DType::int16: return get<std::int16_t>(key);
        case DType::int32: return get<std::int32_t>(key);
        default: return get<std::int8_t>(key);
    }
}

kernels::Rescale Constants::rescale(const std::string& suffix) {
    return {get<std::int32_t>("multiplier" + suffix), get<std::uint8_t>("shift" + suffix),
            std::size_t(op_.constant("multiplier" + suffix).count)};
}

kernels::LookupTables Constants::tables() {
    return {any("tables"), std::size_t(op_.constant("tables").shape[0]), get<std::int32_t>("table_of"),
            kernel_type(op_.out.type())};
}

RowKernelStep::RowKernelStep(const Node& node, const Surroundings& around)
    : kernels_(around.kernels), only_row_(around.grouping.row_of(node.writes)),
      rows_(only_row_ == kAllRows ? std::size_t(around.value(node.writes).shape[0]) : 1) {
    out_ = lines(node.writes, around);
}

Lines RowKernelStep::lines(const std::string& name, const Surroundings& around) {
    const Value& v = around.value(name);
    const std::size_t width = std::size_t(v.shape[1]);
    Lines found{size_of(v.type()), width, width, 0};
    if (around.grouping.row_of(name) == kAllRows) {
        found.image_stride = std::size_t(v.shape[0]) * width;
        if (only_row_ != kAllRows) found.offset = std::size_t(only_row_) * width;
    }
    if (rows_ == 1) found.stride = found.image_stride;
    seamless_ = seamless_ && found.image_stride == found.stride * rows_;
    return found;
}

}  // namespace vitquant
