// JSON as integer programs use it: small, strict, and read alike by everybody.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vitquant {

struct Json {
    enum class Type { null, boolean, integer, number, string, array, object };

    Type type = Type::null;
    bool boolean = false;
    int64_t integer = 0;  // a whole number that fits 62 bits and a sign; others are `number`
    std::string text;     // of a string
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> members;
    std::string_view source;  // where it stands in the text that was parsed

    const Json* find(std::string_view key) const;  // null if there is no such key

    // The value of a key of the type that it must have. Throws Error.
    const Json& object(std::string_view key, const std::string& where) const;
    const Json& array(std::string_view key, const std::string& where) const;
    const std::string& string(std::string_view key, const std::string& where) const;
    int64_t whole(std::string_view key, const std::string& where) const;
    bool flag(std::string_view key, const std::string& where) const;

    // Throws Error unless this is an object with exactly these keys.
    void require_keys(const std::vector<std::string_view>& keys, const std::string& where) const;
};

struct JsonLimits {
    int depth;      // of brackets in brackets
    size_t digits;  // of a whole number, its sign included
    size_t values;  // of all kinds, as each takes memory
};

// Refuses what is not JSON in valid UTF-8, half surrogates, a key twice in one object, numbers without end.
// The text must outlive the result.
Json parse_json(std::string_view text, const JsonLimits& limits, const std::string& where);

}  // namespace vitquant
