#include "error.hpp"

namespace vitquant {

std::string printable(const std::string& text) {
    static const char* const hex = "0123456789abcdef";
    std::string out;
    for (unsigned char c : text) {
        if (out.size() >= 200) return out + "...";
        if (c >= 0x20 && c < 0x7f) {
            out += static_cast<char>(c);
        } else {
            out += "\\x";
            out += hex[c >> 4];
            out += hex[c & 15];
        }
    }
    return out;
}

void refuse(const std::string& where, const std::string& problem, const std::string& got,
            const std::string& expected) {
    std::string message = printable(where) + ": " + problem + ".";
    if (!got.empty()) message += " Got " + printable(got);
    if (!expected.empty()) message += (got.empty() ? " Expected " : ", expected ") + expected;
    if (!got.empty() || !expected.empty()) message += ".";
    throw Error(message);
}

}  // namespace vitquant
