// Operations between tokens: scores, the forms of softmax, and the attention-weighted sum ("mix").
#include "ops/attention.hpp"

#include <optional>

#include "codes.hpp"
#include "kernels/attention_rows.hpp"
#include "ops/check.hpp"

namespace vitquant {
namespace {

constexpr int64_t kExponentialMax = 32767;
constexpr int64_t kLog2RowLimit = 46341;  // 2^15 sqrt(2)

// A step whose tasks are rows of heads: `images * heads * rows` of them, one per query, each over the `tokens` keys of
// its window.
class HeadStep : public Step {
public:
    HeadStep(const Value& out, int64_t heads, int64_t rows, int64_t tokens, int64_t windows = 1)
        : out_(out), heads_(size_t(heads)), rows_(size_t(rows)), tokens_(size_t(tokens)),
          windows_(windows, rows, windows * tokens) {}

    size_t tasks(size_t images, size_t threads) const override {
        return std::min(images * heads_ * rows_, std::max(threads * 8, images * heads_ * rows_ / 16));
    }

    void run(const Frame& frame, size_t task) const final {
        const Rows rows = share(frame.images * heads_ * rows_, task, tasks(frame.images, frame.threads));
        for (size_t r = rows.first; r < rows.last; ++r) {
            const size_t image = r / rows_ / heads_, head = r / rows_ % heads_, row = r % rows_;
            if (r == rows.first || row % windows_.queries == 0) begin_window(frame, image, head, windows_.of(row));
            make_row(frame, image, head, row);
        }
    }

protected:
    virtual void begin_window(const Frame&, size_t /*image*/, size_t /*head*/, size_t /*window*/) const {}
    virtual void make_row(const Frame& frame, size_t image, size_t head, size_t row) const = 0;

    // Where a row of [images, heads, rows, tokens] starts.
    size_t start_of(size_t image, size_t head, size_t row) const {
        return ((image * heads_ + head) * rows_ + row) * tokens_;
    }

    static int32_t* numbers(const Frame& frame) { return reinterpret_cast<int32_t*>(frame.scratch); }

    Codes out_;
    size_t heads_, rows_, tokens_;
    Windows windows_;
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

    // `count` tokens, of the window of this number.
    void load_window(const uint8_t* base, size_t image, size_t head, size_t window, size_t count, int32_t* to) const {
        for (size_t t = 0; t < count; ++t) load(base, image, head, window * count + t, to + t * width);
    }

    Codes codes;
    size_t tokens, channels, width;
    std::vector<int32_t> zero;
};

// The number of windows, which queries and keys can be divided into.
int64_t checked_windows(const Check& check, int64_t queries, int64_t keys) {
    const int64_t windows = check.op().number("windows");
    if (windows < 1 || queries % windows || keys % windows)
        check.fail("the tokens cannot be divided into these windows", std::to_string(windows),
                   "a divisor of " + std::to_string(queries) + " and " + std::to_string(keys));
    return windows;
}

// ---- scores: products of queries and keys ----

void check_scores(Check& check) {
    const Value &q = check.in(0), &k = check.in(1);
    check.tokens(q), check.tokens(k);
    const int64_t n = q.shape[0], c = q.shape[1], heads = check.out().shape[0];
    if (k.shape[1] != c || c % heads)
        check.fail("Q and K do not fit the heads", describe_shape(q.shape) + ", " + describe_shape(k.shape));
    const int64_t keys = k.shape[0] / checked_windows(check, n, k.shape[0]);
    check.shape({heads, n, keys});
    check.rescale(heads);
    const Tensor& table = check.constant("table", {kAny, kAny, kAny});
    if (heads % table.shape[0] || n % table.shape[1] || (table.shape[2] != 1 && table.shape[2] != keys))
        check.fail_constant("table", "it does not fit the scores", describe_shape(table.shape),
                            "divisors of " + std::to_string(heads) + " and " + std::to_string(n) + ", and 1 or " +
                                std::to_string(keys));
    const Range added = range_of(table);
    if (added.low < -kAddendLimit || added.high > kAddendLimit) check.fail_constant("table", "out of range");
    check.operand(0, std::max(q.centred_limit(), k.centred_limit()));
    check.accumulator(Wide{c / heads} * q.centred_limit() * k.centred_limit());
}

class Scores final : public HeadStep {
public:
    Scores(const Operation& op, const Context& context)
        : HeadStep(op.out, op.out.shape[0], op.out.shape[1], op.out.shape[2], op.number("windows")),
          q_(context.value(op.reads[0]), heads_), k_(context.value(op.reads[1]), heads_),
          table_(op.constant("table").to<int32_t>()), requantization_(op, op.out.shape[0]) {
        const Shape& shape = op.constant("table").shape;
        addends_ = {table_.data(), heads_ / size_t(shape[0]), size_t(shape[1]), size_t(shape[2]),
                    shape[2] > 1 ? size_t{1} : 0};
    }

    size_t scratch_bytes() const override { return ((tokens_ + 1) * q_.width + tokens_) * sizeof(int32_t); }

private:
    void begin_window(const Frame& frame, size_t image, size_t head, size_t window) const override {
        k_.load_window(frame.values[reads[1]], image, head, window, tokens_, numbers(frame));
    }

    void make_row(const Frame& frame, size_t image, size_t head, size_t row) const override {
        int32_t *keys = numbers(frame), *q = keys + tokens_ * q_.width, *codes = q + q_.width;
        q_.load(frame.values[reads[0]], image, head, row, q);
        kernels::score_row(requantization_.at, addends_, head, row, q, keys, tokens_, q_.width, codes);
        out_.store(codes, tokens_, out_.at(frame.values[writes], start_of(image, head, row)));
    }

    HeadOperand q_, k_;
    std::vector<int32_t> table_;
    kernels::ScoreAddends addends_{};
    Requantization requantization_;
};

// ---- softmax: by tables of exponentials, in four forms ----

// Of exponentials with so many fractional bits.
void check_exponentials(Check& check, int64_t largest, int fraction_bits = 0) {
    const Value& x = check.in();
    if (x.shape.size() != 3) check.fail("softmax reads scores", describe_shape(x.shape));
    check.shape(x.shape);
    const Tensor& table = check.constant("table", {kAny, x.high - x.low + 1});
    if (x.shape[0] % table.shape[0])
        check.fail_constant("table", "the heads cannot share so many tables", std::to_string(table.shape[0]));
    const Range range = range_of(table);
    const int64_t one = int64_t{1} << fraction_bits, top = largest * one, half = (one + 1) / 2;
    bool fits = range.low >= 0 && range.high <= top;
    for (int64_t t = 0; t < table.shape[0]; ++t) fits = fits && table.at(t * table.shape[1]) >= half;
    if (!fits) check.fail_constant("table", "out of range", span(range.low, range.high), span(0, top));
    if (Wide{x.shape[2]} * largest > kInt32Max)
        check.fail("the row's sum would overflow", std::to_string(x.shape[2]) + " tokens");
}

void check_softmax_row(Check& check) {
    check_exponentials(check, std::min<int64_t>(check.out().high, 65536));
    check.range(0, range_of(check.op().constant("table")).high);
    check.result().has_positive_sum = true;  // the maximum of a row is looked up at distance 0
}

void check_softmax_diffusion(Check& check) {
    check_exponentials(check, std::min<int64_t>(check.out().high, 65536), kernels::diffusion_bits);
    const int64_t one = int64_t{1} << kernels::diffusion_bits;
    check.range(0, (range_of(check.op().constant("table")).high + one - 1) / one);
    check.result().has_positive_sum = true;
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
    const int64_t c = v.shape[1];
    const auto misfit = [&] {
        check.fail("weights and V do not fit", describe_shape(p.shape) + ", " + describe_shape(v.shape));
    };
    if (p.shape.size() != 3 || c % p.shape[0]) misfit();
    const int64_t keys = p.shape[2], windows = checked_windows(check, p.shape[1], v.shape[0]);
    if (v.shape[0] / windows != keys) misfit();
    check.shape({p.shape[1], c});
    check.rescale(c);
    check.operand(0, std::max(p.centred_limit(), v.centred_limit()));
    const Known& weights = check.known(0);
    check.accumulator((weights.row_limit ? Wide{weights.row_limit} : Wide{keys} * p.centred_limit()) *
                      v.centred_limit());
    const int64_t reciprocal = check.op().number("reciprocal_bits"), fraction = check.op().number("fraction_bits");
    if (check.op().number("normalize")) {
        int width = 0;
        for (int64_t x = v.centred_limit(); x; x >>= 1) ++width;
        if (fraction < 0 || fraction > 30 - width || reciprocal < fraction || reciprocal > 52 - width)
            check.fail("fraction out of range", std::to_string(reciprocal) + ", " + std::to_string(fraction));
        if (!weights.has_positive_sum || !p.is_plain())
            check.fail("only what softmax_row or softmax_diffusion makes can be normalised", p.name);
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
        : HeadStep(op.out, context.value(op.reads[0]).shape[0], op.out.shape[0], context.value(op.reads[0]).shape[2],
                   op.number("windows")),
          p_(context.value(op.reads[0])), zero_p_(context.value(op.reads[0]).spread_zero()),
          v_(context.value(op.reads[1]), heads_), division_(division_of(op)), requantization_(op, op.out.shape[1]) {}

    size_t scratch_bytes() const override { return ((tokens_ + 1) * v_.width + tokens_) * sizeof(int32_t); }

private:
    void begin_window(const Frame& frame, size_t image, size_t head, size_t window) const override {
        v_.load_window(frame.values[reads[1]], image, head, window, tokens_, numbers(frame));
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

}  // namespace

kernels::Softmax form_of(const Operation& softmax) {
    if (softmax.is("softmax_row")) return kernels::Softmax::row;
    if (softmax.is("softmax_diffusion")) return kernels::Softmax::diffusion;
    return softmax.is("softmax_uniform") ? kernels::Softmax::uniform : kernels::Softmax::log2;
}

const std::vector<OperationKind>& attention_kinds() {
    static const Constant table{"table", {DType::int32}};
    static const std::vector<OperationKind> kinds = {
        {"scores",
         {"q", "k"},
         {"windows"},
         {},
         {{"table", {DType::int8, DType::int16, DType::int32}}, kMultiplier, kShift},
         check_scores,
         make<Scores>},
        {"softmax_row", {"x"}, {}, {}, {table}, check_softmax_row, make<SoftmaxStep>},
        {"softmax_diffusion", {"x"}, {}, {}, {table}, check_softmax_diffusion, make<SoftmaxStep>},
        {"softmax_uniform", {"x"}, {}, {}, {table, kMultiplier, kShift}, check_softmax_uniform, make<SoftmaxStep>},
        {"softmax_log2", {"x"}, {"last"}, {}, {table}, check_softmax_log2, make<SoftmaxStep>},
        {"mix",
         {"p", "v"},
         {"windows", "reciprocal_bits", "fraction_bits"},
         {"normalize"},
         {kMultiplier, kShift},
         check_mix,
         make<Mix>},
    };
    return kinds;
}

}  // namespace vitquant
