// The file format of the constants: a JSON header that says where each tensor lies, then their bytes.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "tensor.hpp"

namespace vitquant {

// Tensors by name, as views of `file`, which must outlive them. They fill the file without gap or overlap.
// Throws Error for anything else.
std::map<std::string, Tensor> read_safetensors(std::string_view file, const std::string& where);

}  // namespace vitquant
