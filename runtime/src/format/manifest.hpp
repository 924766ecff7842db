// From the two files of a program to the program.
#pragma once

#include <string>
#include <string_view>

#include "interrupt.hpp"
#include "program.hpp"

namespace vitquant {

struct ProgramFiles {
    std::string where;     // path of the manifest, for messages
    std::string manifest;  // program.json
    std::string tensors;   // program.safetensors
};

// Reads both files; `path` is a folder or its program.json. Throws Error, and Interrupted.
ProgramFiles read_program_files(const std::string& path, Interrupt* interrupt = nullptr);

// Whether digests must be right. They keep accidents out, not attackers, who compute them anew: a test that puts
// hostile files together may leave that out.
enum class Digests { checked, ignored };

// The program in them, checked in full; its constants are views of `tensors`, or unpacked. Throws Error, and
// Interrupted.
Program decode_program(std::string_view manifest, std::string_view tensors, const std::string& where,
                       Digests digests = Digests::checked, Interrupt* interrupt = nullptr);

}  // namespace vitquant
