// Which operations are executed together, and of which values a single row is enough.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "program.hpp"

namespace vitquant {

// Operations that become one step: one, a linear layer and what follows it, or scores, softmax and mix.
struct Node {
    std::vector<const Operation*> operations;  // in their order
    std::vector<std::string> reads;            // in the order in which the step takes them

    const std::string& writes() const { return operations.back()->out.name; }
};

struct Grouping {
    std::vector<Node> nodes;  // in the order of execution
    // Of values of which only one token is ever read, its number: only this row is computed and kept.
    std::unordered_map<std::string, int64_t> only_row;
};

// Every operation that the values in `outputs` depend on, by itself and complete, or as `fuse` allows. Others are left
// out.
Grouping group(const Program& program, const std::vector<std::string>& outputs, bool fuse);

}  // namespace vitquant
