// Operations that make other tokens of those they read, or of none: patches, embedding, selection, mean, constants.
#include "kernels/scalar.hpp"
#include "ops/check.hpp"
#include "ops/constants.hpp"
#include "ops/rows.hpp"

namespace vitquant {
namespace {

// ---- patches: the image cut into tokens ----

void check_patches(Check& check) {
    const Value& x = check.in();
    const int64_t height = check.op().number("height"), width = check.op().number("width");
    if (x.shape.size() != 3 || height < 1 || width < 1)
        check.fail("patches are cut from an image", describe_shape(x.shape));
    const int64_t c = x.shape[0], h = x.shape[1], w = x.shape[2];
    if (h % height || w % width)
        check.fail("the patches do not tile the image", std::to_string(height) + "x" + std::to_string(width));
    check.shape({(h / height) * (w / width), c * height * width});
    check.range(x.low, x.high);
}

class Patches final : public RowStep {
public:
    Patches(const Operation& op, const Context& context)
        : RowStep(op, context), x_(lines(op.reads[0], context)), patch_height_(size_t(op.number("height"))),
          patch_width_(size_t(op.number("width"))) {
        const Value& x = context.value(op.reads[0]);
        channels_ = size_t(x.shape[0]), height_ = size_t(x.shape[1]);
    }

    void run_rows(const Frame& frame, Rows rows) const override {
        const size_t across = x_.width / patch_width_, in_size = size_of(x_.codes.type);
        const size_t line = patch_width_ * size_of(out_.codes.type);  // of a patch
        for (size_t r = rows.first; r < rows.last; ++r) {
            const size_t image = r / rows_, patch = r % rows_;
            const size_t top = patch / across * patch_height_, left = patch % across * patch_width_;
            uint8_t* to = out_.at(output(frame), image, patch);
            for (size_t c = 0; c < channels_; ++c) {
                const uint8_t* from = x_.at(input(frame, 0), image, c * height_ + top) + left * in_size;
                for (size_t y = 0; y < patch_height_; ++y, from += x_.width * in_size, to += line)
                    out_.codes.convert(x_.codes, from, patch_width_, to);
            }
        }
    }

private:
    Lines x_;
    size_t patch_height_, patch_width_, channels_ = 0, height_ = 0;
};

// ---- embed: positions added, and tokens of their own put before the others ----

void check_embed(Check& check) {
    const Value& x = check.in();
    check.tokens(x);
    const int64_t prefix = check.op().number("prefix"), c = x.shape[1];
    if (prefix < 0 || prefix > kMaxElements) check.fail("not a number of prefix tokens", std::to_string(prefix));
    const int64_t n = x.shape[0] + prefix;
    check.shape({n, c});
    const Range table = range_of(check.constant("table", {n, c}));
    if (table.low < -kAddendLimit || table.high > kAddendLimit) check.fail_constant("table", "out of range");
    check.rescale(c);
}

class Embed final : public ScalarRowStep {
public:
    Embed(const Operation& op, const Context& context)
        : ScalarRowStep(op, context), prefix_(size_t(op.number("prefix"))),
          zero_(context.value(op.reads[0]).spread_zero()), table_(op.constant("table").to<int32_t>()),
          requantization_(op, op.out.shape[1]) {}

private:
    void make_row(const Frame& frame, size_t image, size_t row, int64_t* codes) const override {
        for (size_t c = 0; c < width(); ++c) codes[c] = table_[row * width() + c];
        if (row < prefix_) return;
        const int32_t* x = load(frame, 0, image, row - prefix_);
        for (size_t c = 0; c < width(); ++c)
            codes[c] += kernels::rescale(requantization_.at, int64_t{x[c]} - zero_[c], c);
    }

    size_t prefix_;
    std::vector<int32_t> zero_, table_;
    Requantization requantization_;
};

// ---- constant: tokens that are the same for every image ----

void check_constant(Check& check) {
    const Value& out = check.out();
    check.tokens(out);
    const Range codes = range_of(check.constant("table", out.shape));
    if (codes.low < out.low || codes.high > out.high)
        check.fail_constant("table", "out of range", span(codes.low, codes.high), span(out.low, out.high));
}

class ConstantStep final : public RowStep {
public:
    ConstantStep(const Operation& op, const Context& context) : RowStep(op, context) {
        const Tensor& table = op.constant("table");
        table_.assign(table.data, table.data + size_t(table.count) * size_of(table.type));
    }

    void run_rows(const Frame& frame, Rows rows) const override {
        const size_t bytes = out_.width * size_of(out_.codes.type);
        for (size_t r = rows.first; r < rows.last; ++r)
            std::memcpy(out_.at(output(frame), r / rows_, r % rows_), table_.data() + token_of(r % rows_) * bytes,
                        bytes);
    }

private:
    std::vector<uint8_t> table_;
};

// ---- gather: tokens in another order, several side by side, or none ----

void check_gather(Check& check) {
    const Value &x = check.in(), &out = check.out();
    check.tokens(x), check.tokens(out);
    const int64_t together = out.shape[1] / x.shape[1];
    check.shape({out.shape[0], together * x.shape[1]});
    const Range index = range_of(check.constant("index", {out.shape[0] * together}));
    if (index.low < -1 || index.high >= x.shape[0])
        check.fail_constant("index", "there are not so many tokens", span(index.low, index.high),
                            span(-1, x.shape[0] - 1));
    check.range(x.low, x.high);
}

class Gather final : public RowStep {
public:
    Gather(const Operation& op, const Context& context)
        : RowStep(op, context), x_(lines(op.reads[0], context)), index_(op.constant("index").to<int32_t>()),
          zero_(x_.width * size_of(out_.codes.type)) {
        out_.codes.store(context.value(op.reads[0]).spread_zero().data(), x_.width, zero_.data());
    }

    void run_rows(const Frame& frame, Rows rows) const override {
        const size_t together = out_.width / x_.width;
        for (size_t r = rows.first; r < rows.last; ++r) {
            uint8_t* to = out_.at(output(frame), r / rows_, r % rows_);
            for (size_t i = 0; i < together; ++i, to += zero_.size()) {
                const int32_t token = index_[r % rows_ * together + i];
                if (token < 0) std::memcpy(to, zero_.data(), zero_.size());
                else out_.codes.convert(x_.codes, x_.at(input(frame, 0), r / rows_, size_t(token)), x_.width, to);
            }
        }
    }

private:
    Lines x_;
    std::vector<int32_t> index_;
    std::vector<uint8_t> zero_;  // what stands where there is no token
};

// ---- take: a single token ----

void check_token(Check& check, const char* key) {
    const Value& x = check.in();
    check.tokens(x);
    const int64_t token = check.op().number(key);
    if (token < 0 || token >= x.shape[0]) check.fail("there is no such token", std::to_string(token));
    check.shape({1, x.shape[1]});
    check.range(x.low, x.high);
}

void check_take(Check& check) { check_token(check, "token"); }

class Take final : public ScalarRowStep {
public:
    Take(const Operation& op, const Context& context)
        : ScalarRowStep(op, context), token_(context.row_of(op.reads[0]) == kAllRows ? size_t(op.number("token")) : 0) {
    }

private:
    void make_row(const Frame& frame, size_t image, size_t, int64_t* codes) const override {
        const int32_t* x = load(frame, 0, image, token_);
        std::copy(x, x + width(), codes);
    }

    size_t token_;  // 0 where nothing else of the value is kept
};

// ---- pool: the rounded mean of the tokens ----

void check_pool(Check& check) {
    check_token(check, "first");
    const Value& x = check.in();
    check.accumulator(Wide{x.shape[0]} * std::max(std::abs(x.low), std::abs(x.high)));
}

class Pool final : public ScalarRowStep {
public:
    Pool(const Operation& op, const Context& context)
        : ScalarRowStep(op, context), first_(size_t(op.number("first"))),
          tokens_(size_t(context.value(op.reads[0]).shape[0])) {}

private:
    void make_row(const Frame& frame, size_t image, size_t, int64_t* codes) const override {
        std::fill(codes, codes + width(), 0);
        for (size_t t = first_; t < tokens_; ++t) {
            const int32_t* x = load(frame, 0, image, t);
            for (size_t c = 0; c < width(); ++c) codes[c] += x[c];
        }
        const auto count = static_cast<int64_t>(tokens_ - first_);
        for (size_t c = 0; c < width(); ++c) codes[c] = floor_divide(2 * codes[c] + count, 2 * count);
    }

    static int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

    size_t first_, tokens_;
};

}  // namespace

const std::vector<OperationKind>& token_kinds() {
    static const std::vector<OperationKind> kinds = {
        {"patches", {"x"}, {"height", "width"}, {}, {}, check_patches, make<Patches>},
        {"embed",
         {"x"},
         {"prefix"},
         {},
         {{"table", {DType::int8, DType::uint8, DType::int16, DType::int32}}, kMultiplier, kShift},
         check_embed,
         make<Embed>},
        {"constant", {}, {}, {}, {{"table", {}}}, check_constant, make<ConstantStep>, true},
        {"gather", {"x"}, {}, {}, {{"index", {DType::int32}}}, check_gather, make<Gather>},
        {"take", {"x"}, {"token"}, {}, {}, check_take, make<Take>},
        {"pool", {"x"}, {"first"}, {}, {}, check_pool, make<Pool>},
    };
    return kinds;
}

}  // namespace vitquant
