#include "ops/rows.hpp"

#include "ops/constants.hpp"

namespace vitquant {

RowStep::RowStep(const Operation& op, const Context& context)
    : row_wise_(op.kind->row_wise), only_row_(context.row_of(op.out.name)),
      rows_(only_row_ == kAllRows ? size_t(op.out.shape[0]) : 1), out_(lines(op.out.name, context)) {}

Lines RowStep::lines(const std::string& name, const Context& context) {
    const Value& v = context.value(name);
    const size_t width = size_t(v.shape.back());
    Lines found{Codes(v), width, width, width, 0, width};
    if (context.row_of(name) == kAllRows) {
        found.image_stride = size_t(v.elements());
        if (only_row_ != kAllRows) found.offset = size_t(only_row_) * width;
    }
    if (rows_ == 1) found.between = found.image_stride;
    seamless_ = seamless_ && found.image_stride == found.between * rows_;
    return found;
}

LoadingRowStep::LoadingRowStep(const Operation& op, const Context& context) : RowStep(op, context) {
    for (const std::string& name : op.reads) {
        operands_.push_back(lines(name, context));
        widest_ = std::max(widest_, operands_.back().width);
    }
}

void ScalarRowStep::run_rows(const Frame& frame, Rows rows) const {
    auto* codes = result_row<int64_t>(frame);
    for (size_t r = rows.first; r < rows.last; ++r) {
        make_row(frame, r / rows_, r % rows_, codes);
        out_.codes.store(codes, out_.width, out_.at(output(frame), r / rows_, r % rows_));
    }
}

RequantizedRowStep::RequantizedRowStep(const Operation& op, const Context& context, int64_t limit)
    : LoadingRowStep(op, context), kernels_(context.kernels) {
    Constants constants(op);
    plan_ = kernels_.make_requantize({width(), limit, constants.rescale(), kernel_grid(op.out)});
    if (kernels::is_quick(*plan_)) code = kernels_.name;
}

void RequantizedRowStep::run_rows(const Frame& frame, Rows rows) const {
    auto* numbers = result_row<int32_t>(frame);
    for (size_t r = rows.first; r < rows.last; ++r) {
        make_row(frame, r / rows_, r % rows_, numbers);
        kernels_.requantize(*plan_, 1, numbers, 0, out_.at(output(frame), r / rows_, r % rows_), 0);
    }
}

int32_t* LoadingRowStep::load(const Frame& frame, size_t operand, size_t image, size_t row) const {
    const Lines& from = operands_[operand];
    auto* to = reinterpret_cast<int32_t*>(frame.scratch + out_.width * sizeof(int64_t)) + operand * widest_;
    from.codes.load(from.at(input(frame, operand), image, row), from.width, to);
    return to;
}

}  // namespace vitquant
