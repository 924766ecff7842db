// Operations between tokens: scores, the forms of softmax, and the attention-weighted sum ("mix").
#include <optional>

#include "codes.hpp"
#include "kernels/attention_rows.hpp"
#include "ops/check.hpp"
#include "ops/constants.hpp"

namespace vitquant {
namespace {

constexpr int64_t kExponentialMax = 32767;
constexpr int64_t kLog2RowLimit = 46341;  // 2^15 sqrt(2)

// A step whose tasks are rows of heads: `images * heads * rows` of them, each over so many tokens. These are the rows
// too in attention; but softmax takes what is not square, as the image may be.
class HeadStep : public Step {
public:
    HeadStep(const Value& out, int64_t heads, int64_t rows, int64_t tokens)
        : out_(out), heads_(size_t(heads)), rows_(size_t(rows)), tokens_(size_t(tokens)) {}

    size_t tasks(size_t images, size_t threads) const override {
        return std::min(images * heads_ * rows_, std::max(threads * 8, images * heads_ * rows_ / 16));
    }

    void run(const Frame& frame, size_t task) const final {
        const Rows rows = share(frame.images * heads_ * rows_, task, tasks(frame.images, frame.threads));
        for (size_t r = rows.first; r < rows.last; ++r) {
            const size_t image = r / rows_ / heads_, head = r / rows_ % heads_;
            if (r == rows.first || r % rows_ == 0) begin_head(frame, image, head);
            make_row(frame, image, head, r % rows_);
        }
    }

protected:
    virtual void begin_head(const Frame&, size_t /*image*/, size_t /*head*/) const {}
    virtual void make_row(const Frame& frame, size_t image, size_t head, size_t row) const = 0;

    // Where a row of [images, heads, rows, tokens] starts.
    size_t start_of(size_t image, size_t head, size_t row) const {
        return ((image * heads_ + head) * rows_ + row) * tokens_;
    }

    static int32_t* numbers(const Frame& frame) { return reinterpret_cast<int32_t*>(frame.scratch); }

    Codes out_;
    size_t heads_, rows_, tokens_;
};

// The channels of a head of an operand [tokens, channels], less their zero points.
struct HeadOperand {
    HeadOperand(const Value& value, size_t heads)
        : codes(value), tokens(size_t(value.shape[0])), channels(size_t(value.shape[1])), width(channels / heads),
          zero(value.spread_zero()) {}

    void load(const uint8_t* base, size_t image, size_t head, size_t token, int32_t* to) const {
        const size_t first = head * width;
        codes.load(codes.at(base, (image * tokens + token) * channels + first), width, to);
        for (size_t d = 0; d < width; ++d) to[d] -= zero[first + d];
    }

    void load_all(const uint8_t* base, size_t image, size_t head, int32_t* to) const {
        for (size_t t = 0; t < tokens; ++t) load(base, image, head, t, to + t * width);
    }

    Codes codes;
    size_t tokens, channels, width;
    std::vector<int32_t> zero;
};

// ---- scores: products of queries and keys ----

void check_scores(Check& check) {
    const Value &q = check.in(0), &k = check.in(1);
    check.tokens(q);
    const int64_t n = q.shape[0], c = q.shape[1], heads = check.out().shape[0];
    if (k.shape != q.shape || c % heads)
        check.fail("Q and K do not fit the heads", describe_shape(q.shape) + ", " + describe_shape(k.shape));
    check.shape({heads, n, n});
    check.rescale(heads);
    check.operand(0, std::max(q.centred_limit(), k.centred_limit()));
    check.accumulator(Wide{c / heads} * q.centred_limit() * k.centred_limit());
}

class Scores final : public HeadStep {
public:
    Scores(const Operation& op, const Context& context)
        : HeadStep(op.out, op.out.shape[0], op.out.shape[1], op.out.shape[2]), q_(context.value(op.reads[0]), heads_),
          k_(context.value(op.reads[1]), heads_), requantization_(op, op.out.shape[0]) {}

    size_t scratch_bytes() const override { return ((tokens_ + 1) * q_.width + tokens_) * sizeof(int32_t); }

private:
    void begin_head(const Frame& frame, size_t image, size_t head) const override {
        k_.load_all(frame.values[reads[1]], image, head, numbers(frame));
    }

    void make_row(const Frame& frame, size_t image, size_t head, size_t row) const override {
        int32_t *keys = numbers(frame), *q = keys + tokens_ * q_.width, *codes = q + q_.width;
        q_.load(frame.values[reads[0]], image, head, row, q);
        kernels::score_row(requantization_.at, head, q, keys, tokens_, q_.width, codes);
        out_.store(codes, tokens_, out_.at(frame.values[writes], start_of(image, head, row)));
    }

    HeadOperand q_, k_;
    Requantization requantization_;
};

// ---- softmax: by tables of exponentials, in three forms ----

void check_exponentials(Check& check, int64_t largest) {
    const Value& x = check.in();
    if (x.shape.size() != 3) check.fail("softmax reads scores", describe_shape(x.shape));
    check.shape(x.shape);
    const Tensor& table = check.constant("table", {kAny, x.high - x.low + 1});
    if (x.shape[0] % table.shape[0])
        check.fail_constant("table", "the heads cannot share so many tables", std::to_string(table.shape[0]));
    const Range range = range_of(table);
    bool fits = range.low >= 0 && range.high <= largest;
    for (int64_t t = 0; t < table.shape[0]; ++t) fits = fits && table.at(t * table.shape[1]) >= 1;
    if (!fits)
        check.fail_constant("table", "out of range", span(range.low, range.high), "0 .. " + std::to_string(largest));
    if (Wide{x.shape[2]} * largest > kInt32Max)
        check.fail("the row's sum would overflow", std::to_string(x.shape[2]) + " tokens");
}

void check_softmax_row(Check& check) {
    check_exponentials(check, std::min<int64_t>(check.out().high, 65536));
    check.range(0, range_of(check.op().constant("table")).high);
    check.result().has_positive_sum = true;  // the maximum of a row is looked up at distance 0
}

void check_softmax_uniform(Check& check) {
    check_exponentials(check, kExponentialMax);
    check.rescale(check.out().shape[0]);
}

void check_softmax_log2(Check& check) {
    check_exponentials(check, kExponentialMax);
    check.range(0, 32768);
    const int64_t last = check.op().number("last");
    if (last < 0 || last > 15) check.fail("the last exponent is out of range");
    if (!check.out().is_plain()) check.fail("powers of two have no zero point");
    check.result().row_limit = kLog2RowLimit;
}

kernels::Softmax form_of(const Operation& softmax) {
    if (softmax.is("softmax_row")) return kernels::Softmax::row;
    return softmax.is("softmax_uniform") ? kernels::Softmax::uniform : kernels::Softmax::log2;
}

class SoftmaxStep final : public HeadStep {
public:
    SoftmaxStep(const Operation& op, const Context& context)
        : HeadStep(op.out, op.out.shape[0], op.out.shape[1], op.out.shape[2]), x_(context.value(op.reads[0])),
          table_(op.constant("table").to<int32_t>()) {
        const Tensor& table = op.constant("table");
        softmax_.form = form_of(op);
        softmax_.table = table_.data();
        softmax_.distances = size_t(table.shape[1]);
        softmax_.sharing = heads_ / size_t(table.shape[0]);
        if (softmax_.form == kernels::Softmax::uniform)
            softmax_.codes = requantization_.emplace(op, op.out.shape[0]).at;
        if (softmax_.form == kernels::Softmax::log2) softmax_.last = static_cast<int>(op.number("last"));
    }

    size_t scratch_bytes() const override { return tokens_ * sizeof(int32_t); }

private:
    void make_row(const Frame& frame, size_t image, size_t head, size_t row) const override {
        int32_t* codes = numbers(frame);
        const size_t at = start_of(image, head, row);
        x_.load(x_.at(frame.values[reads[0]], at), tokens_, codes);
        kernels::softmax_row(softmax_, head, tokens_, codes);
        out_.store(codes, tokens_, out_.at(frame.values[writes], at));
    }

    Codes x_;
    std::vector<int32_t> table_;
    std::optional<Requantization> requantization_;
    kernels::SoftmaxRows softmax_{};
};

// ---- mix: the values, weighted ----

void check_mix(Check& check) {
    const Value &p = check.in(0), &v = check.in(1);
    check.tokens(v);
    const int64_t n = v.shape[0], c = v.shape[1];
    if (p.shape.size() != 3 || p.shape[1] != n || p.shape[2] != n || c % p.shape[0])
        check.fail("weights and V do not fit", describe_shape(p.shape) + ", " + describe_shape(v.shape));
    check.shape({n, c});
    check.rescale(c);
    check.operand(0, std::max(p.centred_limit(), v.centred_limit()));
    const Known& weights = check.known(0);
    check.accumulator((weights.row_limit ? Wide{weights.row_limit} : Wide{n} * p.centred_limit()) * v.centred_limit());
    const int64_t reciprocal = check.op().number("reciprocal_bits"), fraction = check.op().number("fraction_bits");
    if (check.op().number("normalize")) {
        int width = 0;
        for (int64_t x = v.centred_limit(); x; x >>= 1) ++width;
        if (fraction < 0 || fraction > 30 - width || reciprocal < fraction || reciprocal > 52 - width)
            check.fail("fraction out of range", std::to_string(reciprocal) + ", " + std::to_string(fraction));
        if (!weights.has_positive_sum || !p.is_plain())
            check.fail("only what softmax_row makes can be normalised", p.name);
    } else if (fraction || reciprocal) {
        check.fail("without normalising there is no fraction");
    }
}

kernels::Division division_of(const Operation& mix) {
    return {mix.number("normalize") != 0, static_cast<int>(mix.number("reciprocal_bits")),
            static_cast<int>(mix.number("fraction_bits"))};
}

class Mix final : public HeadStep {
public:
    Mix(const Operation& op, const Context& context)
        : HeadStep(op.out, context.value(op.reads[0]).shape[0], op.out.shape[0], context.value(op.reads[1]).shape[0]),
          p_(context.value(op.reads[0])), zero_p_(context.value(op.reads[0]).spread_zero()),
          v_(context.value(op.reads[1]), heads_), division_(division_of(op)), requantization_(op, op.out.shape[1]) {}

    size_t scratch_bytes() const override { return ((tokens_ + 1) * v_.width + tokens_) * sizeof(int32_t); }

private:
    void begin_head(const Frame& frame, size_t image, size_t head) const override {
        v_.load_all(frame.values[reads[1]], image, head, numbers(frame));
    }

    void make_row(const Frame& frame, size_t image, size_t head, size_t row) const override {
        int32_t *values = numbers(frame), *sums = values + tokens_ * v_.width, *p = sums + v_.width;
        p_.load(p_.at(frame.values[reads[0]], start_of(image, head, row)), tokens_, p);
        int64_t total = 0;
        for (size_t t = 0; t < tokens_; ++t) total += p[t] -= zero_p_[head];
        kernels::weigh_row(p, values, tokens_, v_.width, sums);
        const int64_t reciprocal = kernels::reciprocal_of(division_, total);
        for (size_t d = 0; d < v_.width; ++d)
            sums[d] = static_cast<int32_t>(kernels::to_code(
                requantization_.at, kernels::divided(division_, sums[d], reciprocal), head * v_.width + d));
        out_.store(sums, v_.width,
                   out_.at(frame.values[writes], (image * rows_ + row) * v_.channels + head * v_.width));
    }

    Codes p_;
    std::vector<int32_t> zero_p_;
    HeadOperand v_;
    kernels::Division division_;
    Requantization requantization_;
};

// ---- all three as one step: no score is kept longer than its row ----

class AttentionStep final : public Step {
public:
    AttentionStep(const Operation& scores, const Operation& softmax, const Operation& mix, const Context& context)
        : kernels_(context.kernels) {
        const std::string &q_name = scores.reads[0], &k_name = scores.reads[1], &v_name = mix.reads[1];
        const Value &q = context.value(q_name), &v = context.value(v_name);
        Constants of_scores(scores), of_softmax(softmax), of_mix(mix);
        kernels::AttentionSpec spec{};
        spec.tokens = tokens_ = size_t(q.shape[0]);
        spec.channels = channels_ = size_t(q.shape[1]);
        spec.heads = heads_ = size_t(scores.out.shape[0]);
        spec.q = kernel_grid(q);
        spec.k = kernel_grid(context.value(k_name));
        spec.v = kernel_grid(v);
        spec.scores_rescale = of_scores.rescale();
        spec.scores = kernel_grid(scores.out);
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
        for (const auto& [name, operand] :
             {std::pair{&q_name, &q_}, {&k_name, &k_}, {&v_name, &v_}, {&mix.out.name, &out_}}) {
            operand->bytes = channels_ * size_of(context.value(*name).type());
            operand->rows = context.row_of(*name) == kAllRows ? tokens_ : 1;
        }
    }

    size_t scratch_bytes() const override { return kernels_.attention_scratch(*plan_); }

    size_t tasks(size_t images, size_t threads) const override { return images * heads_ * row_parts(images, threads); }

    void run(const Frame& frame, size_t task) const override {
        const size_t parts = row_parts(frame.images, frame.threads);
        const size_t part = task % parts, head = task / parts % heads_, image = task / parts / heads_;
        Rows rows = share(tokens_, part, parts, kRowGrain);
        if (only_row_ != kAllRows) rows = {size_t(only_row_), size_t(only_row_) + 1};
        if (!rows.count()) return;
        kernels::AttentionRun run{};
        run.q = q_.row_0(frame.values[reads[0]], image, only_row_);
        run.k = k_.row_0(frame.values[reads[1]], image, 0);
        run.v = v_.row_0(frame.values[reads[2]], image, 0);
        run.out = out_.row_0(frame.values[writes], image, only_row_);
        run.q_stride = run.k_stride = run.v_stride = run.out_stride = channels_;
        run.first_head = head, run.last_head = head + 1;
        run.first_row = rows.first, run.last_row = rows.last;
        run.scratch = frame.scratch;
        kernels_.attention(*plan_, run);
    }

private:
    static constexpr size_t kRowGrain = 32;
    static constexpr size_t kMostProducts = 1 << 28;  // of a task: between tasks a run can be interrupted

    struct Operand {
        size_t bytes = 0, rows = 0;  // of a row; of an image

        // Where row 0 of an image lies, or would lie if more than the one row were kept.
        uint8_t* row_0(uint8_t* base, size_t image, int64_t only_row) const {
            uint8_t* start = base + image * rows * bytes;
            return rows == 1 && only_row > 0 ? start - size_t(only_row) * bytes : start;
        }
    };

    // Heads are packed anew for every part of their rows: as few parts as keep all threads busy, and tasks short.
    size_t row_parts(size_t images, size_t threads) const {
        if (only_row_ != kAllRows) return 1;
        const size_t most = (tokens_ + kRowGrain - 1) / kRowGrain;
        const size_t heads = images * heads_;
        const size_t least = std::min(most, 1 + 2 * tokens_ * tokens_ * channels_ / heads_ / kMostProducts);
        if (heads % threads == 0 || heads >= 4 * threads) return least;
        return std::max(least, std::min(most, (3 * threads + heads - 1) / heads));
    }

    const kernels::Kernels& kernels_;
    kernels::Owned<kernels::AttentionPlan> plan_;
    size_t tokens_ = 0, heads_ = 0, channels_ = 0;
    int64_t only_row_ = kAllRows;
    Operand q_, k_, v_, out_;
};

}  // namespace

std::unique_ptr<Step> make_attention_step(const Operation& scores, const Operation& softmax, const Operation& mix,
                                          const Context& context) {
    return std::make_unique<AttentionStep>(scores, softmax, mix, context);
}

const std::vector<OperationKind>& attention_kinds() {
    static const Constant table{"table", {DType::int32}};
    static const std::vector<OperationKind> kinds = {
        {"scores", {"q", "k"}, {}, {}, {kMultiplier, kShift}, check_scores, make<Scores>},
        {"softmax_row", {"x"}, {}, {}, {table}, check_softmax_row, make<SoftmaxStep>},
        {"softmax_uniform", {"x"}, {}, {}, {table, kMultiplier, kShift}, check_softmax_uniform, make<SoftmaxStep>},
        {"softmax_log2", {"x"}, {"last"}, {}, {table}, check_softmax_log2, make<SoftmaxStep>},
        {"mix",
         {"p", "v"},
         {"reciprocal_bits", "fraction_bits"},
         {"normalize"},
         {kMultiplier, kShift},
         check_mix,
         make<Mix>},
    };
    return kinds;
}

}  // namespace vitquant
