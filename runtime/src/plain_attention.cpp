// Operations between tokens: scores, the forms of softmax, and the product with V. One task a head's run of rows.
#include "codes.hpp"
#include "plain_steps.hpp"

namespace vitquant {
namespace {

// A step whose tasks are rows of heads: `images * heads * rows` of them, each over so many tokens. These are the rows
// too in attention; but softmax takes what is not square, as the image may be.
class HeadStep : public Step {
public:
    HeadStep(const Value& out, std::int64_t heads, std::int64_t rows, std::int64_t tokens)
        : out_(out), heads_(std::size_t(heads)), rows_(std::size_t(rows)), tokens_(std::size_t(tokens)) {}

    std::size_t tasks(std::size_t images, std::size_t threads) const override {
        return std::min(images * heads_ * rows_, std::max(threads * 8, images * heads_ * rows_ / 16));
    }

    void run(const Frame& frame, std::size_t task) const final {
        const Rows rows = share(frame.images * heads_ * rows_, task, tasks(frame.images, frame.threads));
        for (std::size_t r = rows.first; r < rows.last; ++r)
            row(frame, r / rows_ / heads_, r / rows_ % heads_, r % rows_);
    }

protected:
    virtual void row(const Frame& frame, std::size_t image, std::size_t head, std::size_t token) const = 0;

    // Where a row of [images, heads, rows, tokens] starts.
    std::size_t start_of(std::size_t image, std::size_t head, std::size_t row) const {
        return ((image * heads_ + head) * rows_ + row) * tokens_;
    }

    Codes out_;
    std::size_t heads_, rows_, tokens_;
};

class Scores final : public HeadStep {
public:
    Scores(const Operation& op, const Value& q, const Value& k)
        : HeadStep(op.out, op.out.shape[0], q.shape[0], q.shape[0]), q_(q), k_(k), channels_(std::size_t(q.shape[1])),
          width_(channels_ / heads_), zero_q_(q.spread_zero()), zero_k_(k.spread_zero()), zero_(op.out.spread_zero()),
          rescale_(op.constant("multiplier"), op.constant("shift"), op.out.shape[0]) {}

    std::size_t scratch_bytes() const override { return (2 * width_ + tokens_) * sizeof(std::int32_t); }

private:
    void row(const Frame& frame, std::size_t image, std::size_t head, std::size_t token) const override {
        auto* q = reinterpret_cast<std::int32_t*>(frame.scratch);
        auto *k = q + width_, *codes = k + width_;
        const std::size_t base = image * tokens_ * channels_ + head * width_;
        q_.load(frame.values[reads[0]], base + token * channels_, width_, q);
        for (std::size_t c = 0; c < width_; ++c) q[c] -= zero_q_[head * width_ + c];
        for (std::size_t t = 0; t < tokens_; ++t) {
            k_.load(frame.values[reads[1]], base + t * channels_, width_, k);
            std::int32_t sum = 0;
            for (std::size_t c = 0; c < width_; ++c) sum += q[c] * (k[c] - zero_k_[head * width_ + c]);
            codes[t] = static_cast<std::int32_t>(std::clamp(rescale_(sum, head) + zero_[head], out_.low, out_.high));
        }
        out_.store(codes, tokens_, frame.values[writes], start_of(image, head, token));
    }

    Codes q_, k_;
    std::size_t channels_, width_;
    std::vector<std::int32_t> zero_q_, zero_k_, zero_;
    Rescaling rescale_;
};

// Exponentials of a row, by the distance from its maximum; what becomes of them is told by `finish`.
class SoftmaxStep : public HeadStep {
public:
    SoftmaxStep(const Operation& op, const Value& x)
        : HeadStep(op.out, x.shape[0], x.shape[1], x.shape[2]), x_(x),
          levels_(std::size_t(x.high - x.low + 1)), table_(op.constant("table").to<std::int32_t>()),
          sharers_(std::size_t(x.shape[0] / op.constant("table").shape[0])) {}

    std::size_t scratch_bytes() const override { return tokens_ * (sizeof(std::int32_t) + sizeof(std::int64_t)); }

protected:
    virtual void finish(const std::int32_t* e, std::int64_t sum, std::size_t head, std::int64_t* codes) const = 0;

private:
    void row(const Frame& frame, std::size_t image, std::size_t head, std::size_t token) const override {
        auto* codes = reinterpret_cast<std::int64_t*>(frame.scratch);
        auto* x = reinterpret_cast<std::int32_t*>(codes + tokens_);
        const std::size_t at = start_of(image, head, token);
        x_.load(frame.values[reads[0]], at, tokens_, x);
        const std::int32_t largest = *std::max_element(x, x + tokens_);
        const std::int32_t* table = table_.data() + head / sharers_ * levels_;
        std::int64_t sum = 0;
        for (std::size_t t = 0; t < tokens_; ++t) sum += x[t] = table[largest - x[t]];
        finish(x, sum, head, codes);
        out_.store(codes, tokens_, frame.values[writes], at);
    }

    Codes x_;
    std::size_t levels_;
    std::vector<std::int32_t> table_;
    std::size_t sharers_;  // heads that share a table
};

class SoftmaxRow final : public SoftmaxStep {
public:
    using SoftmaxStep::SoftmaxStep;

private:
    void finish(const std::int32_t* e, std::int64_t, std::size_t, std::int64_t* codes) const override {
        std::copy(e, e + tokens_, codes);
    }
};

class SoftmaxUniform final : public SoftmaxStep {
public:
    SoftmaxUniform(const Operation& op, const Value& x)
        : SoftmaxStep(op, x), zero_(op.out.spread_zero()),
          rescale_(op.constant("multiplier"), op.constant("shift"), op.out.shape[0]) {}

private:
    static constexpr int kReciprocalBits = 50, kShareBits = 30;

    void finish(const std::int32_t* e, std::int64_t sum, std::size_t head, std::int64_t* codes) const override {
        const std::int64_t reciprocal = (std::int64_t{1} << kReciprocalBits) / sum;
        for (std::size_t t = 0; t < tokens_; ++t)
            codes[t] = rescale_((e[t] * reciprocal) >> (kReciprocalBits - kShareBits), head) + zero_[head];
    }

    std::vector<std::int32_t> zero_;
    Rescaling rescale_;
};

class SoftmaxLog2 final : public SoftmaxStep {
public:
    SoftmaxLog2(const Operation& op, const Value& x) : SoftmaxStep(op, x), last_(static_cast<int>(op.number("last"))) {}

private:
    static constexpr int kMax = 15;

    void finish(const std::int32_t* e, std::int64_t sum, std::size_t, std::int64_t* codes) const override {
        const std::int64_t total = sum * sum;
        for (std::size_t t = 0; t < tokens_; ++t) {
            const std::int64_t square = std::int64_t{e[t]} * e[t];
            int q = 0;
            for (int k = 0; k <= last_; ++k) q += (square << (2 * k + 1)) < total;
            codes[t] = q > last_ ? 0 : std::int64_t{1} << (kMax - q);
        }
    }

    int last_;
};

class Mix final : public HeadStep {
public:
    Mix(const Operation& op, const Value& p, const Value& v)
        : HeadStep(op.out, p.shape[0], v.shape[0], v.shape[0]), p_(p), v_(v), channels_(std::size_t(v.shape[1])),
          width_(channels_ / heads_), normalize_(op.number("normalize")),
          reciprocal_bits_(static_cast<int>(op.number("reciprocal_bits"))),
          fraction_bits_(static_cast<int>(op.number("fraction_bits"))), zero_p_(p.spread_zero()),
          zero_v_(v.spread_zero()), zero_(op.out.spread_zero()),
          rescale_(op.constant("multiplier"), op.constant("shift"), op.out.shape[1]) {}

    std::size_t scratch_bytes() const override {
        return width_ * sizeof(std::int64_t) + (2 * width_ + tokens_) * sizeof(std::int32_t);
    }

private:
    void row(const Frame& frame, std::size_t image, std::size_t head, std::size_t token) const override {
        auto* codes = reinterpret_cast<std::int64_t*>(frame.scratch);
        auto* sum = reinterpret_cast<std::int32_t*>(codes + width_);
        auto *v = sum + width_, *p = v + width_;
        p_.load(frame.values[reads[0]], start_of(image, head, token), tokens_, p);
        std::int64_t total = 0;
        for (std::size_t t = 0; t < tokens_; ++t) total += p[t] -= zero_p_[head];
        std::fill(sum, sum + width_, 0);
        const std::size_t base = image * tokens_ * channels_ + head * width_;
        for (std::size_t t = 0; t < tokens_; ++t) {
            v_.load(frame.values[reads[1]], base + t * channels_, width_, v);
            for (std::size_t c = 0; c < width_; ++c) sum[c] += p[t] * (v[c] - zero_v_[head * width_ + c]);
        }
        const std::int64_t reciprocal = normalize_ ? (std::int64_t{1} << reciprocal_bits_) / total : 0;
        for (std::size_t c = 0; c < width_; ++c) {
            std::int64_t acc = sum[c];
            if (normalize_) acc = (acc * reciprocal) >> (reciprocal_bits_ - fraction_bits_);
            const std::size_t channel = head * width_ + c;
            codes[c] = rescale_(acc, channel) + zero_[channel];
        }
        out_.store(codes, width_, frame.values[writes], base + token * channels_);
    }

    Codes p_, v_;
    std::size_t channels_, width_;
    bool normalize_;
    int reciprocal_bits_, fraction_bits_;
    std::vector<std::int32_t> zero_p_, zero_v_, zero_;
    Rescaling rescale_;
};

}  // namespace

std::unique_ptr<Step> make_attention_step(const Operation& op, const ValueOf& value) {
    const Value& x = value(op.reads[0]);
    switch (op.kind) {
        case Kind::scores: return std::make_unique<Scores>(op, x, value(op.reads[1]));
        case Kind::softmax_row: return std::make_unique<SoftmaxRow>(op, x);
        case Kind::softmax_uniform: return std::make_unique<SoftmaxUniform>(op, x);
        case Kind::softmax_log2: return std::make_unique<SoftmaxLog2>(op, x);
        case Kind::mix: return std::make_unique<Mix>(op, x, value(op.reads[1]));
        default: return nullptr;
    }
}

}  // namespace vitquant
