#include "error.hpp"

namespace vitquant {
namespace {

constexpr size_t kShown = 200;  // characters of a text in a message
constexpr size_t kEnd = 80;     // of them of its end, where it is too long: that of a path says which file

std::string escaped(const std::string& text) {
    static const char* const hex = "0123456789abcdef";
    std::string out;
    for (unsigned char c : text) {
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

}  // namespace

std::string printable(const std::string& text) {
    // An escaped byte has four characters; no more bytes are looked at than could be shown.
    const bool long_text = text.size() > kShown;
    const std::string whole = escaped(long_text ? text.substr(0, kShown) : text);
    if (!long_text && whole.size() <= kShown) return whole;
    const std::string end = escaped(long_text ? text.substr(text.size() - kEnd) : text);
    return whole.substr(0, kShown - kEnd) + "..." + end.substr(end.size() - kEnd);
}

void refuse(const std::string& where, const std::string& problem, const std::string& got, const std::string& expected) {
    std::string message = printable(where) + ": " + printable(problem) + ".";
    if (!got.empty()) message += " Got " + printable(got);
    if (!expected.empty()) message += (got.empty() ? " Expected " : ", expected ") + printable(expected);
    if (!got.empty() || !expected.empty()) message += ".";
    throw Error(message);
}

}  // namespace vitquant
