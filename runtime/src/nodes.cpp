#include "nodes.hpp"

#include <algorithm>
#include <utility>

namespace vitquant {
namespace {

class Grouper {
public:
    explicit Grouper(const Program& program) : program_(program) {
        for (const Operation& op : program.operations) {
            maker_[op.out.name] = &op;
            for (const std::string& name : op.reads) readers_[name].push_back(&op);
        }
    }

    std::vector<Node> nodes() {
        std::vector<Node> out;
        for (const Operation& op : program_.operations)
            if (!joins_a_later_one(op)) out.push_back(node(op));
        return out;
    }

private:
    // The operation that makes a value which nothing else reads; null if it is of another kind.
    const Operation* private_maker(const std::string& name, Kind kind) const {
        const auto made = maker_.find(name);
        if (made == maker_.end() || made->second->kind != kind) return nullptr;
        if (name == program_.output || readers_.at(name).size() != 1) return nullptr;
        return made->second;
    }

    const Operation* private_softmax(const std::string& name) const {
        for (Kind kind : {Kind::softmax_row, Kind::softmax_uniform, Kind::softmax_log2})
            if (const Operation* found = private_maker(name, kind)) return found;
        return nullptr;
    }

    // The linear layer that an operation is the end of, and which of its operands that is.
    struct Fused {
        const Operation* linear = nullptr;
        std::size_t operand = 0;
    };

    Fused fused_linear(const Operation& op) const {
        if (op.kind == Kind::lookup || op.kind == Kind::embed) return {private_maker(op.reads[0], Kind::linear), 0};
        if (op.kind == Kind::add)
            for (std::size_t i : {1, 0})
                if (const Operation* linear = private_maker(op.reads[i], Kind::linear)) return {linear, i};
        return {};
    }

    struct Attention {
        const Operation *scores = nullptr, *softmax = nullptr;
    };

    Attention attention(const Operation& mix) const {
        const Operation* softmax = mix.kind == Kind::mix ? private_softmax(mix.reads[0]) : nullptr;
        const Operation* scores = softmax ? private_maker(softmax->reads[0], Kind::scores) : nullptr;
        // The kernels know one width of a head; V may have another.
        if (!scores || maker_.at(scores->reads[0])->out.shape[1] != mix.out.shape[1]) return {};
        return {scores, softmax};
    }

    bool joins_a_later_one(const Operation& op) const {
        const auto readers = readers_.find(op.out.name);
        if (readers == readers_.end()) return false;
        for (const Operation* reader : readers->second) {
            if (fused_linear(*reader).linear == &op) return true;
            const Attention whole = attention(*reader);
            if (whole.softmax == &op) return true;
            if (private_softmax(reader->out.name) == reader)
                for (const Operation* mix : readers_.at(reader->out.name))
                    if (attention(*mix).scores == &op) return true;
        }
        return false;
    }

    Node node(const Operation& op) const {
        Node node{plain_kind(op), &op, nullptr, nullptr, op.reads, op.out.name};
        if (const Fused fused = fused_linear(op); fused.linear) {
            node.kind = NodeKind::linear;
            node.first = fused.linear;
            node.second = &op;
            node.reads = fused.linear->reads;
            if (op.kind == Kind::add) node.reads.push_back(op.reads[1 - fused.operand]);
        }
        if (const Attention whole = attention(op); whole.scores) {
            node = {NodeKind::attention, whole.scores, whole.softmax, &op, whole.scores->reads, op.out.name};
            node.reads.push_back(op.reads[1]);
        }
        return node;
    }

    static NodeKind plain_kind(const Operation& op) {
        switch (op.kind) {
            case Kind::patches: return op.out.type() == DType::uint8 ? NodeKind::patches : NodeKind::plain;
            case Kind::linear: return NodeKind::linear;
            case Kind::layernorm: return NodeKind::layernorm;
            case Kind::add: return NodeKind::add;
            case Kind::requantize: return NodeKind::requantize;
            case Kind::lookup: return NodeKind::lookup;
            default: return NodeKind::plain;
        }
    }

    const Program& program_;
    std::unordered_map<std::string, const Operation*> maker_;
    std::unordered_map<std::string, std::vector<const Operation*>> readers_;
};

// Which row of an operand a node reads, if its result is needed in `row` only.
std::int64_t row_read(const Node& node, std::size_t operand, std::int64_t row) {
    switch (node.kind) {
        case NodeKind::layernorm:
        case NodeKind::add:
        case NodeKind::requantize:
        case NodeKind::lookup: return row;
        case NodeKind::linear: return node.second && node.second->kind == Kind::embed ? kAllRows : row;
        case NodeKind::attention: return operand == 0 ? row : kAllRows;  // all of K and V
        case NodeKind::plain: return node.first->kind == Kind::take ? node.first->number("token") : kAllRows;
        case NodeKind::patches: break;
    }
    return kAllRows;
}

bool can_make_one_row(const Node& node) {
    return node.kind != NodeKind::plain && node.kind != NodeKind::patches &&
           !(node.kind == NodeKind::linear && node.second && node.second->kind == Kind::embed);
}

}  // namespace

Grouping group(const Program& program, bool fuse) {
    Grouping found;
    if (!fuse) {
        for (const Operation& op : program.operations)
            found.nodes.push_back({NodeKind::plain, &op, nullptr, nullptr, op.reads, op.out.name});
        return found;
    }
    std::vector<Node> all = Grouper(program).nodes();
    std::unordered_map<std::string, std::int64_t> needed;  // by all readers of a value
    needed[program.output] = kAllRows;
    for (auto node = all.rbegin(); node != all.rend(); ++node) {
        const auto wanted = needed.find(node->writes);
        if (wanted == needed.end()) continue;  // nobody wants it
        const std::int64_t row = can_make_one_row(*node) ? wanted->second : kAllRows;
        if (row != kAllRows) found.only_row[node->writes] = row;
        for (std::size_t i = 0; i < node->reads.size(); ++i) {
            const std::int64_t read = row_read(*node, i, row);
            const auto [entry, is_new] = needed.emplace(node->reads[i], read);
            if (!is_new && entry->second != read) entry->second = kAllRows;
        }
        found.nodes.push_back(std::move(*node));
    }
    std::reverse(found.nodes.begin(), found.nodes.end());
    return found;
}

}  // namespace vitquant
