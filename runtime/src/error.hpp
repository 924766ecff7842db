// What goes wrong with a program, its files or its input: one exception with a message for people.
#pragma once

#include <stdexcept>
#include <string>

namespace vitquant {

class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Text that is safe in any message: ASCII, one line, at most 200 characters.
std::string printable(const std::string& text);

// Throws `WHERE: PROBLEM. Got GOT, expected EXPECTED.`, the parts that are empty left out.
[[noreturn]] void refuse(const std::string& where, const std::string& problem, const std::string& got = "",
                         const std::string& expected = "");

}  // namespace vitquant
