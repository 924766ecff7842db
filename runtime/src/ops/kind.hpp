// What the runtime knows about each kind of operation. Everything about one kind stands in the file of its family:
// the record that files hold, the checks of it, and the step that executes it. A new kind is one more record there.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/kernels.hpp"
#include "program.hpp"
#include "step.hpp"

namespace vitquant {

class Check;

constexpr int64_t kAllRows = -1;

// What the steps of a plan need to know of it.
struct Context {
    const kernels::Kernels& kernels;
    std::unordered_map<std::string, const Value*> values;
    // Of values of which only one row is ever read, its number: nothing else of them is computed or kept.
    std::unordered_map<std::string, int64_t> only_row;

    const Value& value(const std::string& name) const { return *values.at(name); }
    int64_t row_of(const std::string& name) const {
        const auto found = only_row.find(name);
        return found == only_row.end() ? kAllRows : found->second;
    }
};

struct Constant {
    std::string_view name;
    std::vector<DType> types;  // none: the storage type of the result
};

inline const Constant kMultiplier{"multiplier", {DType::int32}}, kShift{"shift", {DType::uint8}};

struct OperationKind {
    std::string_view name;
    std::vector<std::string_view> reads, numbers, flags;
    std::vector<Constant> constants;
    void (*check)(Check&);  // throws Error if the operation is not well formed
    std::unique_ptr<Step> (*make_step)(const Operation&, const Context&);
    // Whether row r of the result depends on row r of each operand, and on nothing else: such operations can follow
    // each other panel by panel, and be reduced to a single row. Their steps are `RowStep`s.
    bool row_wise = false;
};

const OperationKind* find_kind(std::string_view name);  // null if there is none

// The families.
const std::vector<OperationKind>& attention_kinds();
const std::vector<OperationKind>& elementwise_kinds();
const std::vector<OperationKind>& layernorm_kinds();
const std::vector<OperationKind>& linear_kinds();
const std::vector<OperationKind>& rotary_kinds();
const std::vector<OperationKind>& token_kinds();

// Several operations as one step. `next`, a look-up, an addition or an embedding, reads what the linear layer makes.
std::unique_ptr<Step> make_linear_step(const Operation& linear, const Operation& next, const Context& context);
std::unique_ptr<Step> make_attention_step(const Operation& scores, const Operation& softmax, const Operation& mix,
                                          const Context& context);

// `make_step` of a kind with a step class of its own.
template <typename StepOfKind>
std::unique_ptr<Step> make(const Operation& op, const Context& context) {
    return std::make_unique<StepOfKind>(op, context);
}

}  // namespace vitquant
