// Tensors whose elements have fewer than 8 bits in files.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "format/json.hpp"
#include "interrupt.hpp"
#include "program.hpp"

namespace vitquant {

// Puts int8 tensors in the place of packed ones, and takes away the multipliers of their groups; `told` is what the
// manifest says of them, by name. The new elements are in `memory`. Throws Error, and Interrupted.
void unpack_tensors(const Json& told, std::map<std::string, Tensor>& tensors, UnpackedMemory& memory,
                    Interrupt* interrupt);

}  // namespace vitquant
