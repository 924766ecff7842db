// Proof that a program is well formed: names, shapes, ranges, outputs, and accumulators that cannot overflow.
// The loader ends here, so the engine trusts what it is given.
#pragma once

#include <string>

#include "interrupt.hpp"
#include "program.hpp"

namespace vitquant {

// Each throws Error with what does not fit; the last one also Interrupted.
void check_name(const std::string& name);
void check_grid(const Value& value, const Tensor& scale, const Tensor& zero_point);  // before they are read
void check_value(const Value& value);
void validate(const Program& program, Interrupt* interrupt);

}  // namespace vitquant
