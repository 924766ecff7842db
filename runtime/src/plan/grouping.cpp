#include "plan/grouping.hpp"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "ops/kind.hpp"

namespace vitquant {
namespace {

using Names = std::unordered_set<std::string>;

// The operations that the outputs depend on, in their order. A program may hold others, which need not be computed.
std::vector<const Operation*> needed_operations(const Program& program, const Names& outputs) {
    Names wanted = outputs;
    std::vector<const Operation*> found;
    for (auto op = program.operations.rbegin(); op != program.operations.rend(); ++op) {
        if (!wanted.count(op->out.name)) continue;
        wanted.insert(op->reads.begin(), op->reads.end());
        found.push_back(&*op);
    }
    std::reverse(found.begin(), found.end());
    return found;
}

class Grouper {
public:
    Grouper(const Names& outputs, const std::vector<const Operation*>& operations)
        : outputs_(outputs), operations_(operations) {
        for (const Operation* op : operations) {
            maker_[op->out.name] = op;
            for (const std::string& name : op->reads) readers_[name].push_back(op);
        }
    }

    std::vector<Node> nodes() const {
        std::vector<Node> out;
        for (const Operation* op : operations_)
            if (!joins_a_later_one(*op)) out.push_back(node(*op));
        return out;
    }

private:
    // Null for the image, which no operation makes.
    const Operation* maker_of(const std::string& name) const {
        const auto found = maker_.find(name);
        return found == maker_.end() ? nullptr : found->second;
    }

    // One for each operand: an operation that reads a value twice is here twice. None for an output, perhaps.
    const std::vector<const Operation*>& readers_of(const std::string& name) const {
        static const std::vector<const Operation*> nobody;
        const auto found = readers_.find(name);
        return found == readers_.end() ? nobody : found->second;
    }

    // The operation that makes a value which nothing else reads, and which is no output; null if it is of another kind.
    const Operation* private_maker(const std::string& name, std::string_view kind) const {
        const Operation* made = maker_of(name);
        if (!made || !made->is(kind)) return nullptr;
        if (outputs_.count(name) || readers_of(name).size() != 1) return nullptr;
        return made;
    }

    const Operation* private_softmax(const std::string& name) const {
        for (const char* kind : {"softmax_row", "softmax_diffusion", "softmax_uniform", "softmax_log2"})
            if (const Operation* found = private_maker(name, kind)) return found;
        return nullptr;
    }

    // The linear layer that an operation is the end of, and which of its operands that is.
    struct Fused {
        const Operation* linear = nullptr;
        size_t operand = 0;
    };

    Fused fused_linear(const Operation& op) const {
        if (op.is("lookup") || op.is("embed")) return {private_maker(op.reads[0], "linear"), 0};
        if (op.is("add"))
            for (size_t i : {1, 0})
                if (const Operation* linear = private_maker(op.reads[i], "linear")) return {linear, i};
        return {};
    }

    struct Attention {
        const Operation *scores = nullptr, *softmax = nullptr;
    };

    Attention attention(const Operation& mix) const {
        const Operation* softmax = mix.is("mix") ? private_softmax(mix.reads[0]) : nullptr;
        const Operation* scores = softmax ? private_maker(softmax->reads[0], "scores") : nullptr;
        // The kernels know one width of a head, and one set of windows; V may have others. What scores are of has
        // channels, so it was made.
        if (!scores || maker_of(scores->reads[0])->out.shape[1] != mix.out.shape[1] ||
            scores->number("windows") != mix.number("windows"))
            return {};
        return {scores, softmax};
    }

    bool joins_a_later_one(const Operation& op) const {
        for (const Operation* reader : readers_of(op.out.name)) {
            if (fused_linear(*reader).linear == &op) return true;
            const Attention whole = attention(*reader);
            if (whole.softmax == &op) return true;
            if (private_softmax(reader->out.name) == reader)
                for (const Operation* mix : readers_of(reader->out.name))
                    if (attention(*mix).scores == &op) return true;
        }
        return false;
    }

    Node node(const Operation& op) const {
        if (const Fused fused = fused_linear(op); fused.linear) {
            Node node{{fused.linear, &op}, fused.linear->reads};
            if (op.is("add")) node.reads.push_back(op.reads[1 - fused.operand]);
            return node;
        }
        if (const Attention whole = attention(op); whole.scores) {
            Node node{{whole.scores, whole.softmax, &op}, whole.scores->reads};
            node.reads.push_back(op.reads[1]);
            return node;
        }
        return {{&op}, op.reads};
    }

    const Names& outputs_;
    const std::vector<const Operation*>& operations_;
    std::unordered_map<std::string, const Operation*> maker_;
    std::unordered_map<std::string, std::vector<const Operation*>> readers_;
};

bool is_attention(const Node& node) { return node.operations.size() == 3; }

bool can_make_one_row(const Node& node) { return is_attention(node) || node.operations.back()->kind->row_wise; }

// Which row of an operand a node reads, if its result is needed in `row` only.
int64_t row_read(const Node& node, size_t operand, int64_t row) {
    if (is_attention(node)) return operand == 0 ? row : kAllRows;  // all of K and V
    const Operation& last = *node.operations.back();
    return last.is("take") ? last.number("token") : row;
}

}  // namespace

Grouping group(const Program& program, const std::vector<std::string>& outputs, bool fuse) {
    Grouping found;
    const Names wanted_values(outputs.begin(), outputs.end());
    const std::vector<const Operation*> operations = needed_operations(program, wanted_values);
    if (!fuse) {
        for (const Operation* op : operations) found.nodes.push_back({{op}, op->reads});
        return found;
    }
    std::vector<Node> all = Grouper(wanted_values, operations).nodes();
    std::unordered_map<std::string, int64_t> needed;  // by all readers of a value
    for (const std::string& name : outputs) needed[name] = kAllRows;
    for (auto node = all.rbegin(); node != all.rend(); ++node) {
        const auto wanted = needed.find(node->writes());
        if (wanted == needed.end()) continue;
        const int64_t row = can_make_one_row(*node) ? wanted->second : kAllRows;
        if (row != kAllRows) found.only_row[node->writes()] = row;
        for (size_t i = 0; i < node->reads.size(); ++i) {
            const int64_t read = row_read(*node, i, row);
            const auto [entry, is_new] = needed.emplace(node->reads[i], read);
            if (!is_new && entry->second != read) entry->second = kAllRows;
        }
        found.nodes.push_back(std::move(*node));
    }
    std::reverse(found.nodes.begin(), found.nodes.end());
    return found;
}

}  // namespace vitquant
