// Scores, softmax and the attention-weighted sum as one step: no score is kept longer than its row.
#include "ops/attention.hpp"
#include "ops/kind.hpp"

namespace vitquant {
namespace {

class AttentionStep final : public Step {
public:
    AttentionStep(const Operation& scores, const Operation& softmax, const Operation& mix, const Context& context)
        : kernels_(context.kernels), rows_(size_t(mix.out.shape[0])),
          windows_(scores.number("windows"), mix.out.shape[0], context.value(mix.reads[1]).shape[0]) {
        const std::string &q_name = scores.reads[0], &k_name = scores.reads[1], &v_name = mix.reads[1];
        const Value &q = context.value(q_name), &k = context.value(k_name), &v = context.value(v_name);
        Constants of_scores(scores), of_softmax(softmax), of_mix(mix);
        kernels::AttentionSpec spec{};
        spec.keys = windows_.keys;
        spec.channels = channels_ = size_t(q.shape[1]);
        spec.heads = heads_ = size_t(scores.out.shape[0]);
        spec.q = kernel_grid(q);
        spec.k = kernel_grid(k);
        spec.v = kernel_grid(v);
        spec.scores_rescale = of_scores.rescale();
        spec.scores = kernel_grid(scores.out);
        const std::vector<int32_t> table = scores.constant("table").to<int32_t>();
        const std::vector<int64_t>& table_shape = scores.constant("table").shape;
        spec.score_table = {table.data(), size_t(table_shape[0]), size_t(table_shape[1]), size_t(table_shape[2])};
        spec.softmax = form_of(softmax);
        spec.table = of_softmax.get<int32_t>("table");
        spec.table_count = size_t(softmax.constant("table").shape[0]);
        if (spec.softmax == kernels::Softmax::uniform) spec.weights_rescale = of_softmax.rescale();
        if (spec.softmax == kernels::Softmax::log2) spec.last = static_cast<int>(softmax.number("last"));
        spec.weights = kernel_grid(softmax.out);
        spec.normalize = mix.number("normalize");
        spec.reciprocal_bits = static_cast<int>(mix.number("reciprocal_bits"));
        spec.fraction_bits = static_cast<int>(mix.number("fraction_bits"));
        spec.rescale = of_mix.rescale();
        spec.out = kernel_grid(mix.out);
        plan_ = kernels_.make_attention(spec);
        if (kernels::is_quick(*plan_)) code = kernels_.name;

        only_row_ = context.row_of(mix.out.name);
        for (const auto& [value, operand] : {std::pair{&q, &q_}, {&k, &k_}, {&v, &v_}, {&mix.out, &out_}}) {
            operand->bytes = channels_ * size_of(value->type());
            operand->rows = context.row_of(value->name) == kAllRows ? size_t(value->shape[0]) : 1;
        }
    }

    size_t scratch_bytes() const override { return kernels_.attention_scratch(*plan_); }

    size_t tasks(size_t images, size_t threads) const override { return images * heads_ * row_parts(images, threads); }

    void run(const Frame& frame, size_t task) const override {
        const size_t parts = row_parts(frame.images, frame.threads);
        const size_t part = task % parts, head = task / parts % heads_, image = task / parts / heads_;
        Rows rows = share(rows_, part, parts, row_grain());
        if (only_row_ != kAllRows) rows = {size_t(only_row_), size_t(only_row_) + 1};
        kernels::AttentionRun run{};
        run.q = q_.row_0(frame.values[reads[0]], image, only_row_);
        run.out = out_.row_0(frame.values[writes], image, only_row_);
        run.q_stride = run.k_stride = run.v_stride = run.out_stride = channels_;
        run.first_head = head, run.last_head = head + 1;
        run.scratch = frame.scratch;
        // Each window is an attention of its own.
        while (rows.first < rows.last) {
            const size_t window = windows_.of(rows.first);
            run.k = k_.row_0(frame.values[reads[1]], image, 0) + window * windows_.keys * k_.bytes;
            run.v = v_.row_0(frame.values[reads[2]], image, 0) + window * windows_.keys * v_.bytes;
            run.first_row = rows.first;
            run.last_row = rows.first = std::min(rows.last, (window + 1) * windows_.queries);
            kernels_.attention(*plan_, run);
        }
    }

private:
    static constexpr size_t kRowGrain = 32;
    static constexpr size_t kWindowGrain = 256;       // queries of a window that are not divided among tasks
    static constexpr size_t kMostProducts = 1 << 28;  // of a task: between tasks a run can be interrupted

    struct Operand {
        size_t bytes = 0, rows = 0;  // of a row; of an image

        // Where row 0 of an image lies, or would lie if more than the one row were kept.
        uint8_t* row_0(uint8_t* base, size_t image, int64_t only_row) const {
            uint8_t* start = base + image * rows * bytes;
            return rows == 1 && only_row > 0 ? start - size_t(only_row) * bytes : start;
        }
    };

    size_t row_grain() const {
        return windows_.count > 1 && windows_.queries <= kWindowGrain ? windows_.queries : kRowGrain;
    }

    // Heads are packed anew for every part of their rows: as few parts as keep all threads busy, and tasks short.
    size_t row_parts(size_t images, size_t threads) const {
        if (only_row_ != kAllRows) return 1;
        const size_t most = (rows_ + row_grain() - 1) / row_grain();
        const size_t heads = images * heads_;
        const size_t least = std::min(most, 1 + 2 * rows_ * windows_.keys * channels_ / heads_ / kMostProducts);
        if (heads % threads == 0 || heads >= 4 * threads) return least;
        return std::max(least, std::min(most, (3 * threads + heads - 1) / heads));
    }

    const kernels::Kernels& kernels_;
    kernels::Owned<kernels::AttentionPlan> plan_;
    size_t rows_;
    Windows windows_;
    size_t heads_ = 0, channels_ = 0;
    int64_t only_row_ = kAllRows;
    Operand q_, k_, v_, out_;
};

}  // namespace

std::unique_ptr<Step> make_attention_step(const Operation& scores, const Operation& softmax, const Operation& mix,
                                          const Context& context) {
    return std::make_unique<AttentionStep>(scores, softmax, mix, context);
}

}  // namespace vitquant
