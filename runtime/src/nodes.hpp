// Which operations are executed together, and of which values a single row is enough.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "program.hpp"

namespace vitquant {

enum class NodeKind : std::uint8_t { plain, patches, linear, layernorm, attention, add, requantize, lookup };

// Operations that become one step. `first` is the first of them, and what follows tells the others.
struct Node {
    NodeKind kind = NodeKind::plain;
    const Operation* first = nullptr;   // scores, in attention
    const Operation* second = nullptr;  // lookup, add or embed after linear; softmax in attention
    const Operation* last = nullptr;    // mix in attention
    std::vector<std::string> reads;     // in the order in which the step takes them
    std::string writes;
};

constexpr std::int64_t kAllRows = -1;

struct Grouping {
    std::vector<Node> nodes;  // in the order of execution
    // Of values of which only one token is ever read, its number: only this row is computed and kept.
    std::unordered_map<std::string, std::int64_t> only_row;

    std::int64_t row_of(const std::string& name) const {
        const auto found = only_row.find(name);
        return found == only_row.end() ? kAllRows : found->second;
    }
};

// Every operation that the output depends on, by itself and complete, or as `fuse` allows. Others are left out.
Grouping group(const Program& program, bool fuse);

}  // namespace vitquant
