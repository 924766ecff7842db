#include "kernel_steps.hpp"

#include <optional>

#include "kernel_rows.hpp"

namespace vitquant {
namespace {

class PatchesStep final : public Step {
public:
    PatchesStep(const Node& node, const Surroundings& around)
        : kernels_(around.kernels), height_(std::size_t(node.first->number("height"))),
          width_(std::size_t(node.first->number("width"))) {
        const Value& x = around.value(node.reads[0]);
        image_ = {std::size_t(x.shape[0]), std::size_t(x.shape[1]), std::size_t(x.shape[2])};
        rows_ = std::size_t(node.first->out.shape[0]);
        out_width_ = std::size_t(node.first->out.shape[1]);
    }

    std::size_t tasks(std::size_t images, std::size_t threads) const override {
        return images * std::min(rows_, threads == 1 ? 1 : threads * 2);
    }

    void run(const Frame& frame, std::size_t task) const override {
        const std::size_t parts = tasks(1, frame.threads), image = task / parts;
        const Rows rows = share(rows_, task % parts, parts);
        const std::uint8_t* x = frame.values[reads[0]] + image * image_.channels * image_.height * image_.width;
        std::uint8_t* out = frame.values[writes] + (image * rows_ + rows.first) * out_width_;
        kernels_.patches(image_, height_, width_, x, rows.first, rows.last, out, out_width_);
    }

private:
    const kernels::Kernels& kernels_;
    kernels::ImageShape image_{};
    std::size_t height_, width_, rows_ = 0, out_width_ = 0;
};

class LayerNormStep final : public RowKernelStep {
public:
    LayerNormStep(const Node& node, const Surroundings& around)
        : RowKernelStep(node, around), x_(lines(node.reads[0], around)) {
        const Operation& op = *node.first;
        Constants constants(op);
        plan_ = kernels_.make_layernorm({std::size_t(op.out.shape[1]), kernel_grid(around.value(node.reads[0])),
                                         constants.get<std::int64_t>("gain"), constants.get<std::int64_t>("offset"),
                                         constants.get<std::uint8_t>("shift"), op.constant("epsilon").at(0),
                                         static_cast<int>(op.number("headroom")), kernel_grid(op.out)});
    }

    void run_rows(const Frame& frame, Rows rows) const override {
        for_rows(rows, [&](std::size_t image, std::size_t row, std::size_t count) {
            kernels_.layernorm(*plan_, count, x_.at(input(frame, 0), image, row), x_.stride,
                               out_.at(output(frame), image, row), out_.stride);
        });
    }

private:
    Lines x_;
    kernels::Owned<kernels::LayerNormPlan> plan_;
};

class AddStep final : public RowKernelStep {
public:
    AddStep(const Node& node, const Surroundings& around)
        : RowKernelStep(node, around), a_(lines(node.reads[0], around)), b_(lines(node.reads[1], around)) {
        const Operation& op = *node.first;
        Constants constants(op);
        plan_ = kernels_.make_add({std::size_t(op.out.shape[1]),
                                   {kernel_grid(around.value(node.reads[0])), constants.rescale("_a"),
                                    constants.rescale("_b"), kernel_grid(op.out)},
                                   kernel_grid(around.value(node.reads[1]))});
    }

    void run_rows(const Frame& frame, Rows rows) const override {
        for_rows(rows, [&](std::size_t image, std::size_t row, std::size_t count) {
            kernels_.add(*plan_, count, a_.at(input(frame, 0), image, row), a_.stride,
                         b_.at(input(frame, 1), image, row), b_.stride, out_.at(output(frame), image, row),
                         out_.stride);
        });
    }

private:
    Lines a_, b_;
    kernels::Owned<kernels::AddPlan> plan_;
};

class RequantizeStep final : public RowKernelStep {
public:
    RequantizeStep(const Node& node, const Surroundings& around)
        : RowKernelStep(node, around), x_(lines(node.reads[0], around)) {
        const Operation& op = *node.first;
        const Value& x = around.value(node.reads[0]);
        Constants constants(op);
        plan_ = kernels_.make_requantize({std::size_t(x.shape[1]), std::size_t(op.number("start")),
                                          std::size_t(op.out.shape[1]), kernel_grid(x), constants.rescale(),
                                          kernel_grid(op.out)});
    }

    void run_rows(const Frame& frame, Rows rows) const override {
        for_rows(rows, [&](std::size_t image, std::size_t row, std::size_t count) {
            kernels_.requantize(*plan_, count, x_.at(input(frame, 0), image, row), x_.stride,
                                out_.at(output(frame), image, row), out_.stride);
        });
    }

private:
    Lines x_;
    kernels::Owned<kernels::RequantizePlan> plan_;
};

class LookupStep final : public RowKernelStep {
public:
    LookupStep(const Node& node, const Surroundings& around)
        : RowKernelStep(node, around), x_(lines(node.reads[0], around)) {
        const Operation& op = *node.first;
        Constants constants(op);
        plan_ = kernels_.make_lookup(
            {std::size_t(op.out.shape[1]), kernel_grid(around.value(node.reads[0])), constants.tables()});
    }

    void run_rows(const Frame& frame, Rows rows) const override {
        for_rows(rows, [&](std::size_t image, std::size_t row, std::size_t count) {
            kernels_.lookup(*plan_, count, x_.at(input(frame, 0), image, row), x_.stride,
                            out_.at(output(frame), image, row), out_.stride);
        });
    }

private:
    Lines x_;
    kernels::Owned<kernels::LookupPlan> plan_;
};

class AttentionStep final : public Step {
public:
    AttentionStep(const Node& node, const Surroundings& around) : kernels_(around.kernels) {
        const Operation &scores = *node.first, &softmax = *node.second, &mix = *node.last;
        const Value &q = around.value(node.reads[0]), &v = around.value(node.reads[2]);
        Constants of_scores(scores), of_softmax(softmax), of_mix(mix);
        kernels::AttentionSpec spec{};
        spec.tokens = tokens_ = std::size_t(q.shape[0]);
        spec.channels = std::size_t(q.shape[1]);
        spec.heads = heads_ = std::size_t(scores.out.shape[0]);
        spec.q = kernel_grid(q);
        spec.k = kernel_grid(around.value(node.reads[1]));
        spec.v = kernel_grid(v);
        spec.scores_rescale = of_scores.rescale();
        spec.scores = kernel_grid(scores.out);
        spec.softmax = softmax.kind == Kind::softmax_row       ? kernels::Softmax::row
                       : softmax.kind == Kind::softmax_uniform ? kernels::Softmax::uniform
                                                               : kernels::Softmax::log2;
        spec.table = of_softmax.get<std::int32_t>("table");
        spec.table_count = std::size_t(softmax.constant("table").shape[0]);
        if (spec.softmax == kernels::Softmax::uniform) spec.weights_rescale = of_softmax.rescale();
        if (spec.softmax == kernels::Softmax::log2) spec.last = static_cast<int>(softmax.number("last"));
        spec.weights = kernel_grid(softmax.out);
        spec.normalize = mix.number("normalize");
        spec.reciprocal_bits = static_cast<int>(mix.number("reciprocal_bits"));
        spec.fraction_bits = static_cast<int>(mix.number("fraction_bits"));
        spec.rescale = of_mix.rescale();
        spec.out = kernel_grid(mix.out);
        plan_ = kernels_.make_attention(spec);

        only_row_ = around.grouping.row_of(node.writes);
        q_channels_ = spec.channels, v_channels_ = std::size_t(v.shape[1]);
        for (const auto& [name, lines] : {std::pair{&node.reads[0], &q_}, {&node.reads[1], &k_}, {&node.reads[2], &v_},
                                          {&node.writes, &out_}}) {
            const Value& value = around.value(*name);
            lines->bytes = std::size_t(value.shape[1]) * size_of(value.type());
            lines->rows = around.grouping.row_of(*name) == kAllRows ? tokens_ : 1;
        }
    }

    std::size_t scratch_bytes() const override { return kernels_.attention_scratch(*plan_); }

    std::size_t tasks(std::size_t images, std::size_t threads) const override {
        return images * heads_ * row_parts(images, threads);
    }

    void run(const Frame& frame, std::size_t task) const override {
        const std::size_t parts = row_parts(frame.images, frame.threads);
        const std::size_t part = task % parts, head = task / parts % heads_, image = task / parts / heads_;
        Rows rows = share(tokens_, part, parts, kRowGrain);
        if (only_row_ != kAllRows) rows = {std::size_t(only_row_), std::size_t(only_row_) + 1};
        if (!rows.count()) return;
        kernels::AttentionRun run{};
        run.q = q_.row_0(frame.values[reads[0]], image, only_row_);
        run.k = k_.row_0(frame.values[reads[1]], image, 0);
        run.v = v_.row_0(frame.values[reads[2]], image, 0);
        run.out = out_.row_0(frame.values[writes], image, only_row_);
        run.q_stride = run.k_stride = q_channels_;
        run.v_stride = run.out_stride = v_channels_;
        run.first_head = head, run.last_head = head + 1;
        run.first_row = rows.first, run.last_row = rows.last;
        run.scratch = frame.scratch;
        kernels_.attention(*plan_, run);
    }

private:
    static constexpr std::size_t kRowGrain = 32;
    static constexpr std::size_t kMostProducts = 1 << 28;  // of a task: between tasks a run can be interrupted

    struct Operand {
        std::size_t bytes = 0, rows = 0;  // of a row; of an image

        // Where row 0 of an image lies, or would lie if more than the one row were kept.
        std::uint8_t* row_0(std::uint8_t* base, std::size_t image, std::int64_t only_row) const {
            std::uint8_t* start = base + image * rows * bytes;
            return rows == 1 && only_row > 0 ? start - std::size_t(only_row) * bytes : start;
        }
    };

    // Heads are packed anew for every part of their rows: as few parts as keep all threads busy, and tasks short.
    std::size_t row_parts(std::size_t images, std::size_t threads) const {
        if (only_row_ != kAllRows) return 1;
        const std::size_t most = (tokens_ + kRowGrain - 1) / kRowGrain;
        const std::size_t heads = images * heads_;
        const std::size_t least = std::min(most, 1 + tokens_ * tokens_ * (q_channels_ + v_channels_) / heads_ / kMostProducts);
        if (heads % threads == 0 || heads >= 4 * threads) return least;
        return std::max(least, std::min(most, (3 * threads + heads - 1) / heads));
    }

    const kernels::Kernels& kernels_;
    kernels::Owned<kernels::AttentionPlan> plan_;
    std::size_t tokens_ = 0, heads_ = 0, q_channels_ = 0, v_channels_ = 0;
    std::int64_t only_row_ = kAllRows;
    Operand q_, k_, v_, out_;
};

}  // namespace

std::unique_ptr<Step> make_kernel_step(const Node& node, const Surroundings& around) {
    switch (node.kind) {
        case NodeKind::patches: return std::make_unique<PatchesStep>(node, around);
        case NodeKind::linear: return make_linear_step(node, around);
        case NodeKind::layernorm: return std::make_unique<LayerNormStep>(node, around);
        case NodeKind::attention: return std::make_unique<AttentionStep>(node, around);
        case NodeKind::add: return std::make_unique<AddStep>(node, around);
        case NodeKind::requantize: return std::make_unique<RequantizeStep>(node, around);
        case NodeKind::lookup: return std::make_unique<LookupStep>(node, around);
        case NodeKind::plain: break;
    }
    return nullptr;
}

}  // namespace vitquant
