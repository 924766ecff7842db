// A linear layer and what follows it, by panels of rows and of columns.
#include <optional>

#include "kernel_rows.hpp"

namespace vitquant {
namespace {

constexpr std::size_t kColumnGrain = 64;         // as kernels want columns split
constexpr std::size_t kRowGrain = 12;             // a multiple of the rows that kernels take at once
constexpr std::size_t kWeightBytes = 512 * 1024;  // of a task, so that they stay in the nearer cache from row to row
constexpr std::size_t kTaskProducts = 4 << 20;    // some 20 microseconds: what a thread may have to wait for another
constexpr std::size_t kTasksPerThread = 12;       // more are no more even
constexpr std::size_t kMostProducts = 1 << 28;    // of a task in any case: between tasks a run can be interrupted

class LinearStep final : public RowKernelStep {
public:
    LinearStep(const Node& node, const Surroundings& around) : RowKernelStep(node, around) {
        const Operation& op = *node.first;
        const Value& x = around.value(node.reads[0]);
        inputs_ = std::size_t(x.shape[1]);
        outputs_ = std::size_t(op.out.shape[1]);
        Constants constants(op);
        kernels::LinearSpec spec{inputs_,
                                 outputs_,
                                 constants.any("weight"),
                                 kernel_type(op.constant("weight").type),
                                 constants.get<std::int32_t>("bias"),
                                 kernel_grid(x),
                                 constants.rescale(),
                                 kernel_grid(op.out)};
        std::optional<Constants> more;
        if (node.second) more.emplace(*node.second);
        kernels::LookupTables tables{};
        kernels::Addition addition{};
        if (node.second && node.second->kind == Kind::lookup) {
            tables = more->tables();
            spec.lookup = &tables;
        } else if (node.second && node.second->kind == Kind::add) {
            const Operation& add = *node.second;
            const bool first = add.reads[0] == op.out.name;  // of the addends, the linear layer's
            addition = {kernel_grid(around.value(node.reads[1])), more->rescale(first ? "_b" : "_a"),
                        more->rescale(first ? "_a" : "_b"), kernel_grid(add.out)};
            spec.addition = &addition;
            addend_ = lines(node.reads[1], around);
        } else if (node.second) {
            addition = add_table(*node.second, *more);
            spec.addition = &addition;
        }
        // The table of an embedding has rows of its own for the prefix; a linear layer has none there.
        x_ = lines(node.reads[0], around);
        plan_ = kernels_.make_linear(spec);
    }

    std::size_t scratch_bytes() const override { return kernels_.linear_scratch(*plan_); }

    std::size_t tasks(std::size_t images, std::size_t threads) const override {
        const Parts parts = divide(images, threads);
        return parts.rows * parts.columns;
    }

    void run(const Frame& frame, std::size_t task) const override {
        const Parts parts = divide(frame.images, frame.threads);
        // Tasks that follow each other share their columns, whose weights are near then.
        run_panel(frame, share(frame.images * rows_, task % parts.rows, parts.rows, kRowGrain),
                  share(outputs_, task / parts.rows, parts.columns, kColumnGrain));
    }

    void run_rows(const Frame& frame, Rows rows) const override { run_panel(frame, rows, {0, outputs_}); }

private:
    void run_panel(const Frame& frame, Rows rows, Rows columns) const {
        for_rows(rows, [&](std::size_t image, std::size_t row, std::size_t count) {
            const std::uint8_t* addend = nullptr;
            if (!table_.empty()) addend = addend_.at(reinterpret_cast<const std::uint8_t*>(table_.data()), image, row);
            else if (addend_.stride) addend = addend_.at(input(frame, 1), image, row);
            kernels_.linear(*plan_, {count, x_.at(input(frame, 0), image, row), x_.stride, addend, addend_.stride,
                                     out_.at(output(frame), image, row), out_.stride, columns.first, columns.last,
                                     frame.scratch});
            if (!table_.empty() && row == 0) write_prefix(frame, image, columns);
        });
    }

    struct Parts {
        std::size_t rows, columns;
    };

    Parts divide(std::size_t images, std::size_t threads) const {
        const auto parts_of = [](std::size_t total, std::size_t part) { return (total + part - 1) / part; };
        const std::size_t rows = images * rows_;
        const std::size_t row_grains = parts_of(rows, kRowGrain), column_grains = parts_of(outputs_, kColumnGrain);
        Parts parts{1, std::min(column_grains, parts_of(inputs_ * outputs_, kWeightBytes))};
        const std::size_t least = std::min(row_grains, parts_of(rows * inputs_ * outputs_ / parts.columns, kMostProducts));
        if (threads == 1) return {std::max(parts.rows, least), parts.columns};
        const std::size_t wanted = std::min(threads * kTasksPerThread, parts_of(rows * inputs_ * outputs_, kTaskProducts));
        parts.rows = std::max(std::clamp<std::size_t>(wanted / parts.columns, 1, parts_of(row_grains, 2)), least);
        parts.columns = std::clamp<std::size_t>(parts_of(wanted, parts.rows), parts.columns, column_grains);
        return parts;
    }

    // The table of an embedding is an addend that has been rescaled already, by 2^21 / 2^21.
    kernels::Addition add_table(const Operation& embed, Constants& constants) {
        static const std::int32_t zero = 0, multiplier = 1 << 21;
        static const std::uint8_t shift = 21;
        prefix_ = std::size_t(embed.number("prefix"));
        table_ = embed.constant("table").to<std::int32_t>();
        rows_ -= prefix_;
        low_ = embed.out.low, high_ = embed.out.high, type_ = embed.out.type();
        const std::size_t width = outputs_;
        out_.offset = prefix_ * width;
        if (rows_ == 1) out_.stride = width;
        addend_ = {sizeof(std::int32_t), width, 0, prefix_ * width};
        seamless_ = false;
        kernels::Grid sum = kernel_grid(embed.out);
        sum.zero_point = &zero, sum.zero_count = 1;  // the table holds it
        const auto limit = static_cast<std::int32_t>(std::int64_t{1} << 30);
        return {{kernels::Type::i32, -limit, limit, &zero, 1}, {&multiplier, &shift, 1}, constants.rescale(), sum};
    }

    void write_prefix(const Frame& frame, std::size_t image, Rows columns) const {
        for (std::size_t row = 0; row < prefix_; ++row)
            with_codes(type_, output(frame), [&](auto* out) {
                using Code = std::remove_reference_t<decltype(*out)>;
                for (std::size_t c = columns.first; c < columns.last; ++c)
                    out[image * out_.image_stride + row * outputs_ + c] =
                        static_cast<Code>(std::clamp<std::int64_t>(table_[row * outputs_ + c], low_, high_));
            });
    }

    std::size_t inputs_ = 0, outputs_ = 0;
    Lines x_, addend_;
    kernels::Owned<kernels::LinearPlan> plan_;
    // Of an embedding:
    std::vector<std::int32_t> table_;
    std::size_t prefix_ = 0;
    std::int64_t low_ = 0, high_ = 0;
    DType type_ = DType::int32;
};

}  // namespace

std::unique_ptr<Step> make_linear_step(const Node& node, const Surroundings& around) {
    return std::make_unique<LinearStep>(node, around);
}

}  // namespace vitquant
