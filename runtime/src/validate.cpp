#include "validate.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_map>

#include "error.hpp"

namespace vitquant {
namespace {

using Wide = __int128;  // sums that are checked for leaving 32 or 62 bits must not leave their own

constexpr std::int64_t kMaxElements = std::int64_t{1} << 28;
constexpr std::size_t kMaxName = 200;
constexpr std::int64_t kAddendLimit = std::int64_t{1} << 30;
constexpr std::int64_t kOperandLimit = std::int64_t{1} << 23;
constexpr std::int64_t kExponentialMax = 32767;
constexpr std::int64_t kMultiplierMin = 1 << 21, kMultiplierMax = (1 << 22) - 1;
constexpr std::int64_t kMaxShift = 52;
constexpr std::int64_t kInt32Max = 2147483647;
constexpr std::int64_t kLog2RowLimit = 46341;  // 2^15 sqrt(2)

using Shape = std::vector<std::int64_t>;
constexpr std::int64_t kAny = -1;

struct Range {
    std::int64_t low, high;
};

Range range_of(const Tensor& t) {
    Range range{t.at(0), t.at(0)};
    for (std::int64_t i = 1; i < t.count; ++i) {
        const std::int64_t x = t.at(i);
        range.low = std::min(range.low, x);
        range.high = std::max(range.high, x);
    }
    return range;
}

std::string span(std::int64_t low, std::int64_t high) { return std::to_string(low) + " .. " + std::to_string(high); }

int bit_length(std::int64_t x) {
    int bits = 0;
    for (; x; x >>= 1) ++bits;
    return bits;
}

struct Known {
    std::unordered_map<std::string, const Value*> values;
    std::unordered_map<std::string, std::int64_t> row_limits;
    std::set<std::string> rows_above_zero;

    const Value& operator[](const std::string& name) const { return *values.at(name); }
};

// Checks of one operation.
class Checker {
public:
    Checker(const Operation& op, Known& known) : op_(op), known_(known) {}

    void run() {
        switch (op_.kind) {
            case Kind::patches: return patches();
            case Kind::linear: return linear();
            case Kind::embed: return embed();
            case Kind::layernorm: return layernorm();
            case Kind::requantize: return requantize();
            case Kind::scores: return scores();
            case Kind::softmax_row: return softmax_row();
            case Kind::softmax_uniform: return softmax_uniform();
            case Kind::softmax_log2: return softmax_log2();
            case Kind::mix: return mix();
            case Kind::add: return add();
            case Kind::lookup: return lookup();
            case Kind::take: return take();
            case Kind::pool: return pool();
        }
    }

private:
    const Value& out() const { return op_.out; }
    const Value& in(std::size_t i = 0) const { return known_[op_.reads[i]]; }

    [[noreturn]] void fail(const std::string& problem, const std::string& got = "", const std::string& expected = "") const {
        refuse(out().name, problem, got, expected);
    }

    const Tensor& constant(const char* field, std::initializer_list<DType> types, const Shape& shape) const {
        const Tensor& t = op_.constant(field);
        bool fits = t.shape.size() == shape.size() && t.count <= kMaxElements &&
                    std::find(types.begin(), types.end(), t.type) != types.end();
        for (std::size_t i = 0; fits && i < shape.size(); ++i)
            fits = t.shape[i] > 0 && (shape[i] == kAny || shape[i] == t.shape[i]);
        if (!fits) {
            std::string wanted;
            for (DType type : types) wanted += (wanted.empty() ? "" : " or ") + std::string(name_of(type));
            refuse(out().name + "/" + field, "wrong constant", t.describe(), wanted + " " + describe_shape(shape));
        }
        return t;
    }

    void rescale(std::int64_t length, const std::string& suffix = "") const {
        const std::string names[2] = {"multiplier" + suffix, "shift" + suffix};
        const Range ranges[2] = {{kMultiplierMin, kMultiplierMax}, {0, kMaxShift}};
        for (int i = 0; i < 2; ++i) {
            const bool single = op_.constant(names[i]).shape == Shape{1};
            const Tensor& t = constant(names[i].c_str(), {i ? DType::uint8 : DType::int32}, {single ? 1 : length});
            const Range found = range_of(t);
            if (found.low < ranges[i].low || found.high > ranges[i].high)
                refuse(out().name + "/" + names[i], "out of range", span(found.low, found.high),
                       span(ranges[i].low, ranges[i].high));
        }
        if (op_.constant(names[0]).count != op_.constant(names[1]).count) fail("multiplier and shift differ in length");
    }

    void expect_shape(const Shape& shape) const {
        if (out().shape != shape)
            fail("not the shape that " + op_.name + " makes", describe_shape(out().shape), describe_shape(shape));
    }

    void expect_range(std::int64_t low, std::int64_t high) const {
        if (out().low > low || out().high < high) fail("the range does not hold all codes", span(out().low, out().high));
    }

    void tokens(const Value& value) const {
        if (value.shape.size() != 2) fail(op_.name + " reads tokens", value.name + " " + describe_shape(value.shape));
    }

    void require_int32(Wide limit) const {
        if (limit > kInt32Max)
            fail("an accumulator could overflow", limit < (Wide{1} << 62) ? "a sum of up to " + std::to_string(std::int64_t(limit)) : "",
                 "at most 2147483647, 32 bits");
    }

    void check_operand(std::int64_t low, std::int64_t high) const {
        if (low < -kOperandLimit || high >= kOperandLimit) fail("it multiplies numbers of more than 24 bits", span(low, high));
    }

    void patches() const {
        const Value& x = in();
        const std::int64_t height = op_.number("height"), width = op_.number("width");
        if (x.shape.size() != 3 || height < 1 || width < 1) fail("patches are cut from an image", describe_shape(x.shape));
        const std::int64_t c = x.shape[0], h = x.shape[1], w = x.shape[2];
        if (h % height || w % width)
            fail("the patches do not tile the image", std::to_string(height) + "x" + std::to_string(width));
        expect_shape({(h / height) * (w / width), c * height * width});
        expect_range(x.low, x.high);
    }

    void linear() const {
        const Value& x = in();
        tokens(x);
        const std::int64_t c = x.shape[1];
        const Tensor& weight = constant("weight", {DType::int8, DType::int16, DType::int32}, {kAny, c});
        const std::int64_t rows = weight.shape[0];
        const Tensor& bias = constant("bias", {DType::int32}, {rows});
        expect_shape({x.shape[0], rows});
        rescale(rows);
        check_operand(x.low, x.high);
        const std::int64_t largest = std::max(std::abs(x.low), std::abs(x.high));
        std::int64_t low = 0, high = 0;
        for (std::int64_t r = 0; r < rows; ++r) {
            std::int64_t total = 0;
            if (weight.type == DType::int8) {
                const auto* row = reinterpret_cast<const std::int8_t*>(weight.data) + r * c;
                std::int32_t part = 0;  // 2^28 weights of up to 128 would not fit; taken in pieces
                for (std::int64_t i = 0; i < c; ++i) {
                    part += row[i] < 0 ? -row[i] : row[i];
                    if ((i & 0xffff) == 0xffff) total += part, part = 0;
                }
                total += part;
            } else {
                for (std::int64_t i = 0; i < c; ++i) {
                    const std::int64_t w = weight.at(r * c + i);
                    low = std::min(low, w), high = std::max(high, w);
                    total += std::abs(w);
                }
            }
            require_int32(Wide{total} * largest + std::abs(bias.at(r)));
        }
        check_operand(low, high);
    }

    void embed() const {
        const Value& x = in();
        tokens(x);
        const std::int64_t prefix = op_.number("prefix"), c = x.shape[1];
        if (prefix < 0 || prefix > kMaxElements) fail("not a number of prefix tokens", std::to_string(prefix));
        const std::int64_t n = x.shape[0] + prefix;
        expect_shape({n, c});
        const Range table = range_of(constant("table", {DType::int8, DType::uint8, DType::int16, DType::int32}, {n, c}));
        if (table.low < -kAddendLimit || table.high > kAddendLimit) refuse(out().name + "/table", "out of range");
        rescale(c);
    }

    void layernorm() const {
        const Value& x = in();
        tokens(x);
        const std::int64_t c = x.shape[1], headroom = op_.number("headroom");
        expect_shape({x.shape[0], c});
        const Range gain = range_of(constant("gain", {DType::int64}, {c}));
        const Range offset = range_of(constant("offset", {DType::int64}, {c}));
        const Range shift = range_of(constant("shift", {DType::uint8}, {c}));
        const std::int64_t epsilon = constant("epsilon", {DType::int64}, {1}).at(0), spread = x.high - x.low;
        if (spread >= 65536 || headroom < 0 || headroom > 60 || headroom % 2 || epsilon < 0)
            fail("not an integer LayerNorm", "headroom " + std::to_string(headroom) + ", epsilon " + std::to_string(epsilon));
        const Wide half = spread / 2 + 1;
        if (c > 4096 || ((Wide{c} * c * c * half * half) << headroom) + epsilon >= Wide{1} << 62)
            fail("integer LayerNorm would overflow", std::to_string(c) + " channels, headroom " + std::to_string(headroom));
        const std::int64_t most_gain = std::int64_t{1} << 36, most_offset = std::int64_t{1} << 60;
        if (gain.low < -most_gain || gain.high > most_gain || offset.low < -most_offset || offset.high > most_offset ||
            shift.low < 1 || shift.high > 42)
            fail("gain, offset or shift out of range");
    }

    void requantize() const {
        const Value& x = in();
        tokens(x), tokens(out());
        const std::int64_t width = out().shape[1], start = op_.number("start");
        expect_shape({x.shape[0], width});
        if (start < 0 || start > x.shape[1] || start + width > x.shape[1])
            fail("there are not so many channels", span(start, start), "of " + std::to_string(x.shape[1]));
        rescale(width);
    }

    void scores() const {
        const Value &q = in(0), &k = in(1);
        tokens(q);
        const std::int64_t n = q.shape[0], c = q.shape[1], heads = out().shape[0];
        if (k.shape != q.shape || c % heads)
            fail("Q and K do not fit the heads", describe_shape(q.shape) + ", " + describe_shape(k.shape));
        expect_shape({heads, n, n});
        rescale(heads);
        check_operand(0, std::max(q.centred_limit(), k.centred_limit()));
        require_int32(Wide{c / heads} * q.centred_limit() * k.centred_limit());
    }

    const Tensor& exponentials(std::int64_t largest) const {
        const Value& x = in();
        if (x.shape.size() != 3) fail("softmax reads scores", describe_shape(x.shape));
        expect_shape(x.shape);
        const Tensor& table = constant("table", {DType::int32}, {kAny, x.high - x.low + 1});
        if (x.shape[0] % table.shape[0])
            refuse(out().name + "/table", "the heads cannot share so many tables", std::to_string(table.shape[0]));
        const Range range = range_of(table);
        bool fits = range.low >= 0 && range.high <= largest;
        for (std::int64_t t = 0; t < table.shape[0]; ++t) fits = fits && table.at(t * table.shape[1]) >= 1;
        if (!fits) refuse(out().name + "/table", "out of range", span(range.low, range.high), "0 .. " + std::to_string(largest));
        if (Wide{x.shape[2]} * largest > kInt32Max) fail("the row's sum would overflow", std::to_string(x.shape[2]) + " tokens");
        return table;
    }

    void softmax_row() {
        const Tensor& table = exponentials(std::min<std::int64_t>(out().high, 65536));
        expect_range(0, range_of(table).high);
        known_.rows_above_zero.insert(out().name);  // the maximum of a row is looked up at distance 0
    }

    void softmax_uniform() const {
        exponentials(kExponentialMax);
        rescale(out().shape[0]);
    }

    void softmax_log2() {
        exponentials(kExponentialMax);
        expect_range(0, 32768);
        if (op_.number("last") < 0 || op_.number("last") > 15) fail("the last exponent is out of range");
        if (!out().is_plain()) fail("powers of two have no zero point");
        known_.row_limits[out().name] = kLog2RowLimit;
    }

    void mix() const {
        const Value &p = in(0), &v = in(1);
        tokens(v);
        const std::int64_t n = v.shape[0], c = v.shape[1];
        if (p.shape.size() != 3 || p.shape[1] != n || p.shape[2] != n || c % p.shape[0])
            fail("weights and V do not fit", describe_shape(p.shape) + ", " + describe_shape(v.shape));
        expect_shape({n, c});
        rescale(c);
        check_operand(0, std::max(p.centred_limit(), v.centred_limit()));
        const auto row = known_.row_limits.find(p.name);
        require_int32((row != known_.row_limits.end() ? Wide{row->second} : Wide{n} * p.centred_limit()) * v.centred_limit());
        const std::int64_t reciprocal = op_.number("reciprocal_bits"), fraction = op_.number("fraction_bits");
        if (op_.number("normalize")) {
            const int width = bit_length(v.centred_limit());
            if (fraction < 0 || fraction > 30 - width || reciprocal < fraction || reciprocal > 52 - width)
                fail("fraction out of range", std::to_string(reciprocal) + ", " + std::to_string(fraction));
            if (!known_.rows_above_zero.count(p.name) || !p.is_plain())
                fail("only what softmax_row makes can be normalised", p.name);
        } else if (fraction || reciprocal) {
            fail("without normalising there is no fraction");
        }
    }

    void add() const {
        const Value &a = in(0), &b = in(1);
        tokens(a);
        if (a.shape != b.shape) fail("the addends differ in shape", describe_shape(a.shape) + ", " + describe_shape(b.shape));
        expect_shape(a.shape);
        rescale(a.shape[1], "_a");
        rescale(a.shape[1], "_b");
    }

    void lookup() const {
        const Value& x = in();
        tokens(x);
        expect_shape(x.shape);
        const Tensor& tables = constant("tables", {out().type()}, {kAny, x.high - x.low + 1});
        const Range codes = range_of(tables);
        if (codes.low < out().low || codes.high > out().high)
            refuse(out().name + "/tables", "out of range", span(codes.low, codes.high), span(out().low, out().high));
        const Range used = range_of(constant("table_of", {DType::int32}, {x.shape[1]}));
        if (used.low < 0 || used.high >= tables.shape[0])
            refuse(out().name + "/table_of", "there are not so many tables", span(used.low, used.high));
    }

    void one_of_tokens(const char* key) const {
        const Value& x = in();
        tokens(x);
        const std::int64_t token = op_.number(key);
        if (token < 0 || token >= x.shape[0]) fail("there is no such token", std::to_string(token));
        expect_shape({1, x.shape[1]});
        expect_range(x.low, x.high);
    }

    void take() const { one_of_tokens("token"); }

    void pool() const {
        one_of_tokens("first");
        require_int32(Wide{in().shape[0]} * std::max(std::abs(in().low), std::abs(in().high)));
    }

    const Operation& op_;
    Known& known_;
};

}  // namespace

void check_name(const std::string& name) {
    const bool shown = std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~'; });
    if (!shown || name.empty() || name.size() > kMaxName)
        refuse("name", "not a name", name, "1 to " + std::to_string(kMaxName) + " printable ASCII characters");
}

void check_grid(const Value& value, const Tensor& scale, const Tensor& zero_point) {
    if (scale.type != DType::float32) refuse(value.name, "scales must be positive float32");
    if (zero_point.type != DType::int32) refuse(value.name, "zero points must be int32", name_of(zero_point.type));
    for (const Tensor* t : {&scale, &zero_point})
        if (t->shape.size() != 1 || t->count < 1 || t->count > kMaxElements)
            refuse(value.name, "scale or zero point does not fit the shape", describe_shape(t->shape));
}

void check_value(const Value& value) {
    const std::string& name = value.name;
    bool possible = value.shape.size() == 2 || value.shape.size() == 3;
    std::int64_t elements = 1;
    for (std::int64_t n : value.shape) {
        possible = possible && n >= 1 && n <= kMaxElements;
        if (possible) possible = (elements *= n) <= kMaxElements;
    }
    if (!possible)
        refuse(name, "not a shape that can be computed", describe_shape(value.shape),
               "at most " + std::to_string(kMaxElements) + " elements");
    if (value.low < -kAddendLimit || value.high > kAddendLimit || value.low >= value.high)
        refuse(name, "not a range of codes", span(value.low, value.high));
    for (std::size_t groups : {value.scale.size(), value.zero_point.size()})
        if (groups < 1 || value.axis_length() % std::int64_t(groups))
            refuse(name, "scale or zero point does not fit the shape", std::to_string(groups),
                   "a divisor of " + std::to_string(value.axis_length()));
    for (float s : value.scale)
        if (!std::isfinite(s) || s <= 0) refuse(name, "scales must be positive float32");
    for (std::int32_t z : value.zero_point)
        if (z < value.low || z > value.high) refuse(name, "a zero point is not one of the codes", std::to_string(z));
    if (value.centred_limit() > kInt32Max)
        refuse(name, "codes less their zero point would leave 32 bits", span(value.low, value.high));
}

void validate(const Program& program, Interrupt* interrupt) {
    const Value& image = program.image;
    if (image.shape.size() != 3 || image.low != 0 || image.high != 255)
        refuse(image.name, "the image must be uint8 [channels, height, width]", describe_shape(image.shape));
    Known known;
    known.values[image.name] = &image;
    for (const Operation& op : program.operations) {
        go_on(interrupt);
        if (known.values.count(op.out.name)) refuse(op.out.name, "two values have the same name");
        for (const std::string& name : op.reads)
            if (!known.values.count(name)) refuse(op.out.name, "it reads a value that does not exist yet", name);
        Checker(op, known).run();
        known.values[op.out.name] = &op.out;
    }
    if (!known.values.count(program.output) || program.output == image.name)
        refuse("output", "not a value that an operation makes", program.output);
    const Value& output = known[program.output];
    if (output.shape.size() != 2 || output.shape[0] != 1)
        refuse(program.output, "the output must have one row", describe_shape(output.shape));
}

}  // namespace vitquant
