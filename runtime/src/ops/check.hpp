// What the checks of operations have in common. Each throws Error with what does not fit.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "ops/kind.hpp"

namespace vitquant {

using Wide = __int128;  // sums that are checked for leaving 32 or 62 bits must not leave their own
using Shape = std::vector<int64_t>;

constexpr int64_t kMaxElements = int64_t{1} << 28;
constexpr int64_t kAddendLimit = int64_t{1} << 30;
constexpr int64_t kInt32Max = 2147483647;
constexpr int64_t kAny = -1;  // a length that may be anything

struct Range {
    int64_t low, high;
};

Range range_of(const Tensor& t);
std::string span(int64_t low, int64_t high);

// A value that was made before, and what is known of it beyond its range.
struct Known {
    const Value* value;
    int64_t row_limit = 0;          // of the sum of a row's magnitudes, if it is known to be less than usual; else 0
    bool has_positive_sum = false;  // whether each row's sum is above 0
};

using KnownValues = std::unordered_map<std::string, Known>;

class Check {
public:
    Check(const Operation& op, KnownValues& known) : op_(op), known_(known), result_{&op.out} {}

    // Checks the operation, and makes its result known.
    void run();

    const Operation& op() const { return op_; }
    const Value& out() const { return op_.out; }
    const Value& in(size_t i = 0) const { return *known(i).value; }
    const Known& known(size_t i) const { return known_.at(op_.reads[i]); }
    Known& result() { return result_; }

    [[noreturn]] void fail(const std::string& problem, const std::string& got = "",
                           const std::string& expected = "") const;
    [[noreturn]] void fail_constant(const char* field, const std::string& problem, const std::string& got = "",
                                    const std::string& expected = "") const;

    // A constant of one of the types of its record and of this shape.
    const Tensor& constant(std::string_view field, const Shape& shape) const;
    void rescale(int64_t length, const std::string& suffix = "") const;  // one multiplier and shift, or `length`
    void shape(const Shape& shape) const;                                // of the result
    void range(int64_t low, int64_t high) const;                         // that the result must hold
    void tokens(const Value& value) const;                               // have two axes
    void operand(int64_t low, int64_t high) const;                       // may be multiplied
    void accumulator(Wide limit) const;                                  // fits 32 bits

private:
    const Operation& op_;
    KnownValues& known_;
    Known result_;
};

}  // namespace vitquant
