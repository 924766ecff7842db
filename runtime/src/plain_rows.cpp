// Operations on rows of tokens, one by one.
#include "plain_steps.hpp"

#include <cmath>

#include "codes.hpp"

namespace vitquant {
namespace {

// A step whose output's rows are made one by one; tasks are runs of rows.
class RowStep : public Step {
public:
    explicit RowStep(const Value& out) : out_(out), rows_(std::size_t(out.shape[0])), width_(std::size_t(out.shape[1])) {}

    std::size_t tasks(std::size_t images, std::size_t threads) const override {
        return std::min(images * rows_, std::max(threads * 4, images * rows_ / 16));
    }

    void run(const Frame& frame, std::size_t task) const final {
        const Rows rows = share(frame.images * rows_, task, tasks(frame.images, frame.threads));
        for (std::size_t r = rows.first; r < rows.last; ++r) row(frame, r / rows_, r % rows_);
    }

protected:
    virtual void row(const Frame& frame, std::size_t image, std::size_t index) const = 0;

    const std::uint8_t* input(const Frame& frame, std::size_t i = 0) const { return frame.values[reads[i]]; }
    std::uint8_t* output(const Frame& frame) const { return frame.values[writes]; }

    Codes out_;
    std::size_t rows_, width_;
};

class Patches final : public RowStep {
public:
    Patches(const Operation& op, const Value& x)
        : RowStep(op.out), x_(x), channels_(std::size_t(x.shape[0])), height_(std::size_t(x.shape[1])),
          width_in_(std::size_t(x.shape[2])), patch_height_(std::size_t(op.number("height"))),
          patch_width_(std::size_t(op.number("width"))) {}

    std::size_t scratch_bytes() const override { return patch_width_ * sizeof(std::int32_t); }

private:
    void row(const Frame& frame, std::size_t image, std::size_t index) const override {
        auto* line = reinterpret_cast<std::int32_t*>(frame.scratch);
        const std::size_t across = width_in_ / patch_width_;
        const std::size_t top = index / across * patch_height_, left = index % across * patch_width_;
        std::size_t to = (image * rows_ + index) * width_;
        for (std::size_t c = 0; c < channels_; ++c)
            for (std::size_t y = 0; y < patch_height_; ++y, to += patch_width_) {
                const std::size_t from = ((image * channels_ + c) * height_ + top + y) * width_in_ + left;
                x_.load(input(frame), from, patch_width_, line);
                out_.store(line, patch_width_, output(frame), to);
            }
    }

    Codes x_;
    std::size_t channels_, height_, width_in_, patch_height_, patch_width_;
};

// Products are added up in 32 bits, which hold every partial sum, as the loader has proved.
template <typename X, typename W>
std::int32_t dot(const X* x, const W* w, std::size_t count) {
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += std::int32_t{x[i]} * std::int32_t{w[i]};
    return sum;
}

template <typename W>
class Linear final : public RowStep {
public:
    Linear(const Operation& op, const Value& x)
        : RowStep(op.out), x_(x), inputs_(std::size_t(x.shape[1])), weight_(op.constant("weight").to<W>()),
          bias_(op.constant("bias").to<std::int32_t>()), zero_(op.out.spread_zero()),
          rescale_(op.constant("multiplier"), op.constant("shift"), op.out.shape[1]) {}

    std::size_t scratch_bytes() const override { return (inputs_ * 2 + width_ + 16) * 4; }

private:
    void row(const Frame& frame, std::size_t image, std::size_t index) const override {
        const std::size_t r = image * rows_ + index;
        auto* wide = reinterpret_cast<std::int32_t*>(frame.scratch);
        auto* narrow = reinterpret_cast<std::int16_t*>(wide + inputs_);
        auto* codes = wide + 2 * inputs_;
        x_.load(input(frame), r * inputs_, inputs_, wide);
        if (x_.low >= -32768 && x_.high <= 32767) {
            for (std::size_t i = 0; i < inputs_; ++i) narrow[i] = static_cast<std::int16_t>(wide[i]);
            products(narrow, codes);
        } else {
            products(wide, codes);
        }
        out_.store(codes, width_, output(frame), r * width_);
    }

    template <typename X>
    void products(const X* x, std::int32_t* codes) const {
        for (std::size_t o = 0; o < width_; ++o) {
            const std::int64_t sum = std::int64_t{dot(x, weight_.data() + o * inputs_, inputs_)} + bias_[o];
            codes[o] = static_cast<std::int32_t>(std::clamp(rescale_(sum, o) + zero_[o], out_.low, out_.high));
        }
    }

    Codes x_;
    std::size_t inputs_;
    std::vector<W> weight_;
    std::vector<std::int32_t> bias_, zero_;
    Rescaling rescale_;
};

class Embed final : public RowStep {
public:
    Embed(const Operation& op, const Value& x)
        : RowStep(op.out), x_(x), prefix_(std::size_t(op.number("prefix"))), zero_(x.spread_zero()),
          table_(op.constant("table").to<std::int32_t>()),
          rescale_(op.constant("multiplier"), op.constant("shift"), op.out.shape[1]) {}

    std::size_t scratch_bytes() const override { return width_ * (sizeof(std::int32_t) + sizeof(std::int64_t)); }

private:
    void row(const Frame& frame, std::size_t image, std::size_t index) const override {
        auto* sum = reinterpret_cast<std::int64_t*>(frame.scratch);
        auto* x = reinterpret_cast<std::int32_t*>(sum + width_);
        for (std::size_t c = 0; c < width_; ++c) sum[c] = table_[index * width_ + c];
        if (index >= prefix_) {
            x_.load(input(frame), (image * (rows_ - prefix_) + index - prefix_) * width_, width_, x);
            for (std::size_t c = 0; c < width_; ++c) sum[c] += rescale_(std::int64_t{x[c]} - zero_[c], c);
        }
        out_.store(sum, width_, output(frame), (image * rows_ + index) * width_);
    }

    Codes x_;
    std::size_t prefix_;
    std::vector<std::int32_t> zero_, table_;
    Rescaling rescale_;
};

int bit_length(std::int64_t x) {
    int bits = 0;
    for (; x; x >>= 1) ++bits;
    return bits;
}

// floor(sqrt(x)) of 0 <= x < 2^62.
std::int64_t integer_sqrt(std::int64_t x) {
    auto root = static_cast<std::int64_t>(std::sqrt(static_cast<double>(x)));
    while (root * root > x) --root;
    while ((root + 1) * (root + 1) <= x) ++root;
    return root;
}

class LayerNorm final : public RowStep {
public:
    LayerNorm(const Operation& op, const Value& x)
        : RowStep(op.out), x_(x), gain_(op.constant("gain").to<std::int64_t>()),
          offset_(op.constant("offset").to<std::int64_t>()), shift_(op.constant("shift").to<std::uint8_t>()),
          epsilon_(op.constant("epsilon").at(0)), headroom_(static_cast<int>(op.number("headroom"))),
          zero_(op.out.spread_zero()) {}

    std::size_t scratch_bytes() const override { return width_ * (sizeof(std::int32_t) + sizeof(std::int64_t)); }

private:
    static constexpr int kFraction = 20, kReciprocal = 54;

    void row(const Frame& frame, std::size_t image, std::size_t index) const override {
        const std::size_t r = image * rows_ + index;
        auto* codes = reinterpret_cast<std::int64_t*>(frame.scratch);
        auto* x = reinterpret_cast<std::int32_t*>(codes + width_);
        x_.load(input(frame), r * width_, width_, x);
        const auto channels = static_cast<std::int64_t>(width_);
        std::int64_t sum = 0, squares = 0;
        for (std::size_t c = 0; c < width_; ++c) sum += x[c];
        for (std::size_t c = 0; c < width_; ++c) {
            const std::int64_t centred = x[c] * channels - sum;
            squares += centred * centred;
        }
        const std::int64_t power = (squares << headroom_) + epsilon_;
        int k = std::min((62 - bit_length(power)) >> 1, 30 - headroom_ / 2);
        const std::int64_t deviation = std::max<std::int64_t>(integer_sqrt((power << (2 * k)) / channels), 1);
        k += headroom_ / 2;
        const std::int64_t reciprocal = (std::int64_t{1} << kReciprocal) / deviation;
        const int drop = kReciprocal - kFraction - k;
        for (std::size_t c = 0; c < width_; ++c) {
            const std::int64_t centred = x[c] * channels - sum;
            const std::int64_t normalised = (centred * reciprocal + (std::int64_t{1} << (drop - 1))) >> drop;
            const std::int64_t scaled = normalised * gain_[c] + offset_[c] + (std::int64_t{1} << (shift_[c] - 1));
            codes[c] = (scaled >> shift_[c]) + zero_[c];
        }
        out_.store(codes, width_, output(frame), r * width_);
    }

    Codes x_;
    std::vector<std::int64_t> gain_, offset_;
    std::vector<std::uint8_t> shift_;
    std::int64_t epsilon_;
    int headroom_;
    std::vector<std::int32_t> zero_;
};

class Requantize final : public RowStep {
public:
    Requantize(const Operation& op, const Value& x)
        : RowStep(op.out), x_(x), channels_(std::size_t(x.shape[1])), start_(std::size_t(op.number("start"))),
          zero_x_(x.spread_zero()), zero_(op.out.spread_zero()),
          rescale_(op.constant("multiplier"), op.constant("shift"), op.out.shape[1]) {}

    std::size_t scratch_bytes() const override { return width_ * (sizeof(std::int32_t) + sizeof(std::int64_t)); }

private:
    void row(const Frame& frame, std::size_t image, std::size_t index) const override {
        const std::size_t r = image * rows_ + index;
        auto* codes = reinterpret_cast<std::int64_t*>(frame.scratch);
        auto* x = reinterpret_cast<std::int32_t*>(codes + width_);
        x_.load(input(frame), r * channels_ + start_, width_, x);
        for (std::size_t c = 0; c < width_; ++c)
            codes[c] = rescale_(std::int64_t{x[c]} - zero_x_[start_ + c], c) + zero_[c];
        out_.store(codes, width_, output(frame), r * width_);
    }

    Codes x_;
    std::size_t channels_, start_;
    std::vector<std::int32_t> zero_x_, zero_;
    Rescaling rescale_;
};

class Add final : public RowStep {
public:
    Add(const Operation& op, const Value& a, const Value& b)
        : RowStep(op.out), a_(a), b_(b), zero_a_(a.spread_zero()), zero_b_(b.spread_zero()),
          zero_(op.out.spread_zero()), rescale_a_(op.constant("multiplier_a"), op.constant("shift_a"), a.shape[1]),
          rescale_b_(op.constant("multiplier_b"), op.constant("shift_b"), a.shape[1]) {}

    std::size_t scratch_bytes() const override { return 2 * width_ * (sizeof(std::int32_t) + sizeof(std::int64_t)); }

private:
    void row(const Frame& frame, std::size_t image, std::size_t index) const override {
        const std::size_t r = image * rows_ + index;
        auto* sum = reinterpret_cast<std::int64_t*>(frame.scratch);
        auto* a = reinterpret_cast<std::int32_t*>(sum + width_);
        auto* b = a + width_;
        a_.load(input(frame, 0), r * width_, width_, a);
        b_.load(input(frame, 1), r * width_, width_, b);
        for (std::size_t c = 0; c < width_; ++c)
            sum[c] = rescale_a_(std::int64_t{a[c]} - zero_a_[c], c) + rescale_b_(std::int64_t{b[c]} - zero_b_[c], c) +
                     zero_[c];
        out_.store(sum, width_, output(frame), r * width_);
    }

    Codes a_, b_;
    std::vector<std::int32_t> zero_a_, zero_b_, zero_;
    Rescaling rescale_a_, rescale_b_;
};

class Lookup final : public RowStep {
public:
    Lookup(const Operation& op, const Value& x)
        : RowStep(op.out), x_(x), levels_(std::size_t(x.high - x.low + 1)),
          tables_(op.constant("tables").to<std::int32_t>()), table_of_(op.constant("table_of").to<std::int32_t>()) {}

    std::size_t scratch_bytes() const override { return width_ * sizeof(std::int32_t); }

private:
    void row(const Frame& frame, std::size_t image, std::size_t index) const override {
        const std::size_t r = image * rows_ + index;
        auto* x = reinterpret_cast<std::int32_t*>(frame.scratch);
        x_.load(input(frame), r * width_, width_, x);
        for (std::size_t c = 0; c < width_; ++c)
            x[c] = tables_[std::size_t(table_of_[c]) * levels_ + std::size_t(x[c] - x_.low)];
        out_.store(x, width_, output(frame), r * width_);
    }

    Codes x_;
    std::size_t levels_;
    std::vector<std::int32_t> tables_, table_of_;
};

class Take final : public RowStep {
public:
    Take(const Operation& op, const Value& x)
        : RowStep(op.out), x_(x), tokens_(std::size_t(x.shape[0])), token_(std::size_t(op.number("token"))) {}

    std::size_t scratch_bytes() const override { return width_ * sizeof(std::int32_t); }

private:
    void row(const Frame& frame, std::size_t image, std::size_t) const override {
        auto* x = reinterpret_cast<std::int32_t*>(frame.scratch);
        x_.load(input(frame), (image * tokens_ + token_) * width_, width_, x);
        out_.store(x, width_, output(frame), image * width_);
    }

    Codes x_;
    std::size_t tokens_, token_;
};

class Pool final : public RowStep {
public:
    Pool(const Operation& op, const Value& x)
        : RowStep(op.out), x_(x), tokens_(std::size_t(x.shape[0])), first_(std::size_t(op.number("first"))) {}

    std::size_t scratch_bytes() const override { return width_ * (sizeof(std::int32_t) + sizeof(std::int64_t)); }

private:
    void row(const Frame& frame, std::size_t image, std::size_t) const override {
        auto* sum = reinterpret_cast<std::int64_t*>(frame.scratch);
        auto* x = reinterpret_cast<std::int32_t*>(sum + width_);
        std::fill(sum, sum + width_, 0);
        for (std::size_t t = first_; t < tokens_; ++t) {
            x_.load(input(frame), (image * tokens_ + t) * width_, width_, x);
            for (std::size_t c = 0; c < width_; ++c) sum[c] += x[c];
        }
        const auto count = static_cast<std::int64_t>(tokens_ - first_);
        for (std::size_t c = 0; c < width_; ++c) sum[c] = floor_divide(2 * sum[c] + count, 2 * count);
        out_.store(sum, width_, output(frame), image * width_);
    }

    static std::int64_t floor_divide(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0); }

    Codes x_;
    std::size_t tokens_, first_;
};

std::unique_ptr<Step> make_linear(const Operation& op, const Value& x) {
    switch (op.constant("weight").type) {
        case DType::int8: return std::make_unique<Linear<std::int8_t>>(op, x);
        case DType::int16: return std::make_unique<Linear<std::int16_t>>(op, x);
        default: return std::make_unique<Linear<std::int32_t>>(op, x);
    }
}

}  // namespace

std::unique_ptr<Step> make_row_step(const Operation& op, const ValueOf& value) {
    const Value& x = value(op.reads[0]);
    switch (op.kind) {
        case Kind::patches: return std::make_unique<Patches>(op, x);
        case Kind::linear: return make_linear(op, x);
        case Kind::embed: return std::make_unique<Embed>(op, x);
        case Kind::layernorm: return std::make_unique<LayerNorm>(op, x);
        case Kind::requantize: return std::make_unique<Requantize>(op, x);
        case Kind::add: return std::make_unique<Add>(op, x, value(op.reads[1]));
        case Kind::lookup: return std::make_unique<Lookup>(op, x);
        case Kind::take: return std::make_unique<Take>(op, x);
        case Kind::pool: return std::make_unique<Pool>(op, x);
        default: return nullptr;
    }
}

}  // namespace vitquant
