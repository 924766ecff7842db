// A plan told to people: what is executed, when, by which code, and where its values lie.
#pragma once

#include <string>

#include "plan/plan.hpp"

namespace vitquant {

// Several lines of ASCII. The plan makes the outputs `chosen`; `isa` is the name of the instruction set.
std::string explain(const Program& program, const std::vector<const Output*>& chosen, const Plan& plan,
                    const std::string& isa);

}  // namespace vitquant
