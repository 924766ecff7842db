// What goes wrong with a program, its files or its input: one exception with a message for people.
#pragma once

#include <stdexcept>
#include <string>

namespace vitquant {

class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Text that is safe in any message: ASCII, one line, some 200 characters; of what is longer, the start and the end.
std::string printable(const std::string& text);

// Throws `WHERE: PROBLEM. Got GOT, expected EXPECTED.`, each part as `printable` shows it, those that are empty left
// out.
[[noreturn]] void refuse(const std::string& where, const std::string& problem, const std::string& got = "",
                         const std::string& expected = "");

}  // namespace vitquant
