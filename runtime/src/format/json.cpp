#include "format/json.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "error.hpp"

namespace vitquant {
namespace {

class Parser {
public:
    Parser(std::string_view text, const JsonLimits& limits, const std::string& where)
        : text_(text), limits_(limits), where_(where) {}

    Json document() {
        Json found = value(limits_.depth);
        blank();
        if (at_ != text_.size()) fail("something follows the end");
        return found;
    }

private:
    [[noreturn]] void fail(const std::string& problem) const {
        refuse(where_, "not JSON: " + problem + ", at byte " + std::to_string(at_));
    }

    int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1; }

    void blank() {
        while (at_ < text_.size() &&
               (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
            ++at_;
    }

    void expect(char c) {
        if (peek() != static_cast<unsigned char>(c)) fail(std::string("expected ") + c);
        ++at_;
    }

    bool skip(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json value(int depth) {
        blank();
        if (++values_ > limits_.values) refuse(where_, "too many values in one file");
        const size_t start = at_;
        Json found;
        const int c = peek();
        if (c == '{' || c == '[') {
            if (depth == 0)
                refuse(where_, "nested too deeply", "", "at most " + std::to_string(limits_.depth) + " levels");
            c == '{' ? object(found, depth) : array(found, depth);
        } else if (c == '"') {
            found.type = Json::Type::string;
            found.text = string();
        } else if (c == '-' || (c >= '0' && c <= '9')) {
            number(found);
        } else if (skip("true") || skip("false")) {
            found.type = Json::Type::boolean;
            found.boolean = c == 't';
        } else if (!skip("null")) {
            fail("expected a value");
        }
        found.source = text_.substr(start, at_ - start);
        return found;
    }

    void object(Json& found, int depth) {
        found.type = Json::Type::object;
        ++at_;
        blank();
        if (peek() == '}') return void(++at_);
        for (;;) {
            blank();
            if (peek() != '"') fail("expected a key");
            std::string key = string();
            blank();
            expect(':');
            found.members.emplace_back(std::move(key), value(depth - 1));
            blank();
            if (peek() != ',') break;
            ++at_;
        }
        expect('}');
        once(found.members);
    }

    void once(const std::vector<std::pair<std::string, Json>>& members) const {
        std::vector<std::string_view> keys;
        for (const auto& member : members) keys.push_back(member.first);
        std::sort(keys.begin(), keys.end());
        const auto twice = std::adjacent_find(keys.begin(), keys.end());
        if (twice != keys.end()) refuse(where_, "a key stands twice in one object", std::string(*twice));
    }

    void array(Json& found, int depth) {
        found.type = Json::Type::array;
        ++at_;
        blank();
        if (peek() == ']') return void(++at_);
        for (;;) {
            found.items.push_back(value(depth - 1));
            blank();
            if (peek() != ',') break;
            ++at_;
        }
        expect(']');
    }

    size_t digits() {
        const size_t start = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        if (at_ == start) fail("expected a digit");
        return at_ - start;
    }

    void number(Json& found) {
        const size_t start = at_;
        if (peek() == '-') ++at_;
        const bool leading_zero = peek() == '0';
        if (digits() > 1 && leading_zero) fail("a number starts with 0");
        bool whole = true;
        if (peek() == '.') {
            whole = false, ++at_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            whole = false, ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            digits();
        }
        const std::string written(text_.substr(start, at_ - start));
        found.type = Json::Type::number;
        if (!whole) {
            if (!std::isfinite(std::strtod(written.c_str(), nullptr))) refuse(where_, "a number is too large");
            return;
        }
        if (written.size() > limits_.digits) refuse(where_, "a number has too many digits");
        if (written.size() > 19) return;  // more than 62 bits: a number, but none that anything can be
        const long long parsed = std::strtoll(written.c_str(), nullptr, 10);
        constexpr long long limit = 1LL << 62;
        if (parsed < -limit || parsed > limit) return;
        found.type = Json::Type::integer;
        found.integer = parsed;
    }

    unsigned hex4() {
        unsigned code = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const int c = peek();
            if (c >= '0' && c <= '9') code = code * 16 + unsigned(c - '0');
            else if (c >= 'a' && c <= 'f') code = code * 16 + unsigned(c - 'a' + 10);
            else if (c >= 'A' && c <= 'F') code = code * 16 + unsigned(c - 'A' + 10);
            else fail("expected four hexadecimal digits");
        }
        return code;
    }

    static void append_utf8(std::string& out, unsigned code) {
        if (code < 0x80) {
            out += static_cast<char>(code);
        } else if (code < 0x800) {
            out += static_cast<char>(0xc0 | code >> 6);
            out += static_cast<char>(0x80 | (code & 63));
        } else if (code < 0x10000) {
            out += static_cast<char>(0xe0 | code >> 12);
            out += static_cast<char>(0x80 | (code >> 6 & 63));
            out += static_cast<char>(0x80 | (code & 63));
        } else {
            out += static_cast<char>(0xf0 | code >> 18);
            out += static_cast<char>(0x80 | (code >> 12 & 63));
            out += static_cast<char>(0x80 | (code >> 6 & 63));
            out += static_cast<char>(0x80 | (code & 63));
        }
    }

    void escape(std::string& out) {
        ++at_;
        const int c = peek();
        static const std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
        ++at_;
        if (c != 'u') {
            const auto i = c < 0 ? std::string_view::npos : from.find(static_cast<char>(c));
            if (i == std::string_view::npos) fail("an unknown escape");
            out += to[i];
            return;
        }
        unsigned code = hex4();
        if (code >= 0xd800 && code < 0xe000) {
            if (code >= 0xdc00 || !skip("\\u")) fail("half of a surrogate pair");
            const unsigned low = hex4();
            if (low < 0xdc00 || low > 0xdfff) fail("half of a surrogate pair");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        append_utf8(out, code);
    }

    // One character of two to four bytes, checked: no overlong form, no surrogate, nothing above U+10FFFF.
    void multibyte(std::string& out) {
        const unsigned first = static_cast<unsigned>(peek());
        const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
        if (first < 0xc2 || first > 0xf4 || at_ + length > text_.size()) fail("not UTF-8");
        unsigned code = first & (0x7fu >> length);
        for (size_t i = 1; i < length; ++i) {
            const unsigned c = static_cast<unsigned char>(text_[at_ + i]);
            if ((c & 0xc0) != 0x80) fail("not UTF-8");
            code = code << 6 | (c & 63);
        }
        const unsigned least = length == 4 ? 0x10000 : length == 3 ? 0x800 : 0x80;
        if (code < least || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) fail("not UTF-8");
        out.append(text_.substr(at_, length));
        at_ += length;
    }

    std::string string() {
        std::string out;
        ++at_;
        for (;;) {
            const int c = peek();
            if (c < 0) fail("a string has no end");
            if (c < 0x20) fail("a control character in a string");
            if (c == '"') break;
            if (c == '\\') escape(out);
            else if (c >= 0x80) multibyte(out);
            else out += static_cast<char>(c), ++at_;
        }
        ++at_;
        return out;
    }

    std::string_view text_;
    JsonLimits limits_;
    const std::string& where_;
    size_t at_ = 0, values_ = 0;
};

const Json& member(const Json& json, std::string_view key, Json::Type type, const char* kind,
                   const std::string& where) {
    const Json* found = json.find(key);
    if (!found || found->type != type)
        refuse(where, "`" + std::string(key) + "` is missing or of the wrong type", "", kind);
    return *found;
}

}  // namespace

const Json* Json::find(std::string_view key) const {
    for (const auto& [name, value] : members)
        if (name == key) return &value;
    return nullptr;
}

const Json& Json::object(std::string_view key, const std::string& where) const {
    return member(*this, key, Type::object, "an object", where);
}

const Json& Json::array(std::string_view key, const std::string& where) const {
    return member(*this, key, Type::array, "a list", where);
}

const std::string& Json::string(std::string_view key, const std::string& where) const {
    return member(*this, key, Type::string, "a string", where).text;
}

int64_t Json::whole(std::string_view key, const std::string& where) const {
    return member(*this, key, Type::integer, "a whole number", where).integer;
}

bool Json::flag(std::string_view key, const std::string& where) const {
    return member(*this, key, Type::boolean, "true or false", where).boolean;
}

void Json::require_keys(const std::vector<std::string_view>& keys, const std::string& where) const {
    if (type != Type::object) refuse(where, "not an object");
    for (const auto& [name, value] : members)
        if (std::find(keys.begin(), keys.end(), name) == keys.end()) refuse(where, "unknown key", name);
    for (std::string_view key : keys)
        if (!find(key)) refuse(where, "missing key `" + std::string(key) + "`");
}

Json parse_json(std::string_view text, const JsonLimits& limits, const std::string& where) {
    return Parser(text, limits, where).document();
}

}  // namespace vitquant
