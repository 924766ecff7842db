// Every operation by itself, in plain C++: what the fused kernels do not cover, and what they are compared with.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "program.hpp"
#include "step.hpp"

namespace vitquant {

using ValueOf = std::function<const Value&(const std::string&)>;

// The step of an operation, without `reads` and `writes` filled in; it copies what it needs of the constants.
// Null where the operation is of the other sort.
std::unique_ptr<Step> make_row_step(const Operation& op, const ValueOf& value);
std::unique_ptr<Step> make_attention_step(const Operation& op, const ValueOf& value);  // scores, softmax, mix

}  // namespace vitquant
