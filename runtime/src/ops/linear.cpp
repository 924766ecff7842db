// A linear layer and what follows it, by panels of rows and of columns.
#include <optional>

#include "ops/check.hpp"
#include "ops/constants.hpp"
#include "ops/rows.hpp"

namespace vitquant {
namespace {

int64_t sum_of_magnitudes(const Tensor& weight, int64_t first, int64_t count) {
    int64_t total = 0;
    if (weight.type != DType::int8) {
        for (int64_t i = first; i < first + count; ++i) total += std::abs(weight.at(i));
        return total;
    }
    const auto* row = reinterpret_cast<const int8_t*>(weight.data) + first;
    int32_t part = 0;  // 2^28 weights of up to 128 would not fit; taken in pieces
    for (int64_t i = 0; i < count; ++i) {
        part += row[i] < 0 ? -row[i] : row[i];
        if ((i & 0xffff) == 0xffff) total += part, part = 0;
    }
    return total + part;
}

void check_linear(Check& check) {
    const Value& x = check.in();
    check.tokens(x);
    const int64_t c = x.shape[1];
    const Tensor& weight = check.constant("weight", {kAny, c});
    const int64_t rows = weight.shape[0];
    const Tensor& bias = check.constant("bias", {rows});
    check.shape({x.shape[0], rows});
    check.rescale(rows);
    check.operand(x.low, x.high);
    const int64_t largest = std::max(std::abs(x.low), std::abs(x.high));
    for (int64_t r = 0; r < rows; ++r)
        check.accumulator(Wide{sum_of_magnitudes(weight, r * c, c)} * largest + std::abs(bias.at(r)));
    if (weight.type == DType::int32) {
        const Range range = range_of(weight);
        check.operand(range.low, range.high);
    }
}

constexpr size_t kColumnGrain = 64;          // as kernels want columns split
constexpr size_t kRowGrain = 12;             // a multiple of the rows that kernels take at once
constexpr size_t kWeightBytes = 512 * 1024;  // of a task, so that they stay in the nearer cache from row to row
constexpr size_t kTaskProducts = 4 << 20;    // some 20 microseconds: what a thread may have to wait for another
constexpr size_t kTasksPerThread = 12;       // more are no more even
constexpr size_t kMostProducts = 1 << 28;    // of a task in any case: between tasks a run can be interrupted

// `next` is null, or the look-up, the addition or the embedding that is done along with the layer.
class LinearStep final : public RowStep {
public:
    LinearStep(const Operation& op, const Operation* next, const Context& context)
        : RowStep(next ? *next : op, context), kernels_(context.kernels), x_(lines(op.reads[0], context)),
          inputs_(x_.width), outputs_(size_t(op.out.shape[1])) {
        Constants constants(op), more(next ? *next : op);
        kernels::LinearSpec spec{inputs_,
                                 outputs_,
                                 constants.any("weight"),
                                 kernel_type(op.constant("weight").type),
                                 constants.get<int32_t>("bias"),
                                 kernel_grid(context.value(op.reads[0])),
                                 constants.rescale(),
                                 kernel_grid(op.out)};
        kernels::LookupTables tables{};
        kernels::Addition addition{};
        if (next && next->is("lookup")) {
            tables = more.tables();
            spec.lookup = &tables;
        } else if (next) {
            addition = next->is("add") ? add_value(*next, op.out.name, more, context) : add_table(*next, more);
            spec.addition = &addition;
        }
        plan_ = kernels_.make_linear(spec);
        if (kernels::is_quick(*plan_)) code = kernels_.name;
    }

    LinearStep(const Operation& op, const Context& context) : LinearStep(op, nullptr, context) {}

    size_t scratch_bytes() const override { return kernels_.linear_scratch(*plan_); }

    size_t tasks(size_t images, size_t threads) const override {
        const Parts parts = divide(images, threads);
        return parts.rows * parts.columns;
    }

    void run(const Frame& frame, size_t task) const override {
        const Parts parts = divide(frame.images, frame.threads);
        // Tasks that follow each other share their columns, whose weights are near then.
        run_panel(frame, share(frame.images * rows_, task % parts.rows, parts.rows, kRowGrain),
                  share(outputs_, task / parts.rows, parts.columns, kColumnGrain));
    }

    void run_rows(const Frame& frame, Rows rows) const override { run_panel(frame, rows, {0, outputs_}); }

private:
    void run_panel(const Frame& frame, Rows rows, Rows columns) const {
        for_rows(rows, [&](size_t image, size_t row, size_t count) {
            const uint8_t* addend = nullptr;
            if (addend_) {
                const auto* table = reinterpret_cast<const uint8_t*>(table_.data());
                addend = addend_->at(table_.empty() ? input(frame, 1) : table, image, row);
            }
            kernels_.linear(
                *plan_, {count, x_.at(input(frame, 0), image, row), x_.between, addend, addend_ ? addend_->between : 0,
                         out_.at(output(frame), image, row), out_.between, columns.first, columns.last, frame.scratch});
            if (!table_.empty() && row == 0) write_prefix(frame, image, columns);
        });
    }

    struct Parts {
        size_t rows, columns;
    };

    Parts divide(size_t images, size_t threads) const {
        const auto parts_of = [](size_t total, size_t part) { return (total + part - 1) / part; };
        const size_t rows = images * rows_;
        const size_t row_grains = parts_of(rows, kRowGrain), column_grains = parts_of(outputs_, kColumnGrain);
        Parts parts{1, std::min(column_grains, parts_of(inputs_ * outputs_, kWeightBytes))};
        const size_t least = std::min(row_grains, parts_of(rows * inputs_ * outputs_ / parts.columns, kMostProducts));
        if (threads == 1) return {std::max(parts.rows, least), parts.columns};
        const size_t wanted = std::min(threads * kTasksPerThread, parts_of(rows * inputs_ * outputs_, kTaskProducts));
        parts.rows = std::max(std::clamp<size_t>(wanted / parts.columns, 1, parts_of(row_grains, 2)), least);
        parts.columns = std::clamp<size_t>(parts_of(wanted, parts.rows), parts.columns, column_grains);
        return parts;
    }

    kernels::Addition add_value(const Operation& add, const std::string& made, Constants& constants,
                                const Context& context) {
        const size_t other = add.reads[0] == made ? 1 : 0;  // of the addends
        const Value& value = context.value(add.reads[other]);
        addend_ = lines(value.name, context);
        return {kernel_grid(value), constants.rescale(other ? "_b" : "_a"), constants.rescale(other ? "_a" : "_b"),
                kernel_grid(add.out)};
    }

    // The table of an embedding is an addend that has been rescaled already, by 2^21 / 2^21. Its rows for the prefix
    // are tokens of their own, which no row of the linear layer makes.
    kernels::Addition add_table(const Operation& embed, Constants& constants) {
        static const int32_t zero = 0, multiplier = 1 << 21;
        static const uint8_t shift = 21;
        prefix_ = size_t(embed.number("prefix"));
        table_ = embed.constant("table").to<int32_t>();
        rows_ -= prefix_;
        out_.offset = prefix_ * outputs_;
        out_.between = out_.stride;  // calls are of one image each
        addend_ = out_;
        addend_->codes.type = DType::int32;
        addend_->image_stride = 0;
        seamless_ = false;
        kernels::Grid sum = kernel_grid(embed.out);
        sum.zero_point = &zero, sum.zero_count = 1;  // the table holds it
        const auto limit = static_cast<int32_t>(kAddendLimit);
        return {{kernels::Type::i32, -limit, limit, &zero, 1}, {&multiplier, &shift, 1}, constants.rescale(), sum};
    }

    void write_prefix(const Frame& frame, size_t image, Rows columns) const {
        for (size_t row = 0; row < prefix_; ++row) {
            uint8_t* out = out_.codes.at(output(frame), image * out_.image_stride + row * outputs_ + columns.first);
            out_.codes.store(table_.data() + row * outputs_ + columns.first, columns.count(), out);
        }
    }

    const kernels::Kernels& kernels_;
    Lines x_;
    size_t inputs_, outputs_;
    std::optional<Lines> addend_;
    kernels::Owned<kernels::LinearPlan> plan_;
    // Of an embedding:
    std::vector<int32_t> table_;
    size_t prefix_ = 0;
};

}  // namespace

std::unique_ptr<Step> make_linear_step(const Operation& linear, const Operation& next, const Context& context) {
    return std::make_unique<LinearStep>(linear, &next, context);
}

const std::vector<OperationKind>& linear_kinds() {
    static const std::vector<OperationKind> kinds = {
        {"linear",
         {"x"},
         {},
         {},
         {{"weight", {DType::int8, DType::int16, DType::int32}}, {"bias", {DType::int32}}, kMultiplier, kShift},
         check_linear,
         make<LinearStep>,
         true},
    };
    return kinds;
}

}  // namespace vitquant
