#include "plan.hpp"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "kernel_steps.hpp"
#include "nodes.hpp"
#include "plain_steps.hpp"

namespace vitquant {
namespace {

std::size_t rounded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// One token of a value that is kept as this one token already.
std::unique_ptr<Step> make_copy(const Operation& take, const Value& x) {
    Operation op = take;
    Value row = x;
    row.shape[0] = 1;
    op.numbers["token"] = 0;
    return make_row_step(op, [&](const std::string&) -> const Value& { return row; });
}

class Planner {
public:
    Planner(const Program& program, const kernels::Kernels* kernels)
        : program_(program), kernels_(kernels), grouping_(group(program, kernels != nullptr)) {
        add(program.image);
        for (const Operation& op : program.operations) add(op.out);
    }

    Plan plan() {
        Plan plan;
        for (const Node& node : grouping_.nodes) {
            std::unique_ptr<Step> step = make(node);
            for (const std::string& name : node.reads) step->reads.push_back(numbers_.at(name));
            step->writes = numbers_.at(node.writes);
            for (const Operation* op : {node.first, node.second, node.last})
                if (op) step->label += (step->label.empty() ? "" : "+") + op->name;
            plan.scratch_bytes = std::max(plan.scratch_bytes, rounded(step->scratch_bytes()));
            plan.steps.push_back(std::move(step));
        }
        plan.output = numbers_.at(program_.output);
        plan.phase_ends = phases(plan);
        place(plan);
        return plan;
    }

private:
    void add(const Value& value) {
        numbers_.emplace(value.name, static_cast<int>(values_.size()));
        values_.push_back(&value);
    }

    std::unique_ptr<Step> make(const Node& node) const {
        const ValueOf value = [this](const std::string& name) -> const Value& { return *values_[std::size_t(numbers_.at(name))]; };
        if (node.kind != NodeKind::plain) return make_kernel_step(node, {*kernels_, grouping_, value});
        if (node.first->kind == Kind::take && grouping_.row_of(node.reads[0]) != kAllRows)
            return make_copy(*node.first, value(node.reads[0]));
        std::unique_ptr<Step> step = make_row_step(*node.first, value);
        return step ? std::move(step) : make_attention_step(*node.first, value);
    }

    // Neighbouring steps of which none reads what another makes may run at the same time.
    static std::vector<std::size_t> phases(const Plan& plan) {
        std::vector<std::size_t> ends;
        std::vector<int> written;
        for (std::size_t i = 0; i < plan.steps.size(); ++i) {
            const Step& step = *plan.steps[i];
            const bool waits = std::any_of(step.reads.begin(), step.reads.end(), [&](int value) {
                return std::find(written.begin(), written.end(), value) != written.end();
            });
            if (waits) {
                ends.push_back(i);
                written.clear();
            }
            written.push_back(step.writes);
        }
        if (!plan.steps.empty()) ends.push_back(plan.steps.size());
        return ends;
    }

    std::size_t bytes_of(int value) const {
        const Value& v = *values_[std::size_t(value)];
        const auto rows = static_cast<std::size_t>(v.shape[0]);
        const std::size_t all = static_cast<std::size_t>(v.elements()) * size_of(v.type());
        return rounded(grouping_.row_of(v.name) == kAllRows ? all : all / rows);
    }

    // Values share memory where one is no longer read when the other is made; each takes the lowest place that is free
    // throughout its life, in the order in which they are made.
    void place(Plan& plan) const {
        struct Life {
            int value;
            std::size_t first, last;  // phases
        };
        std::unordered_map<int, std::size_t> last_read;
        std::vector<Life> lives;
        for (std::size_t i = 0, phase = 0; i < plan.steps.size(); ++i) {
            if (i == plan.phase_ends[phase]) ++phase;
            for (int value : plan.steps[i]->reads) last_read[value] = phase;
            last_read[plan.steps[i]->writes] = phase;
            lives.push_back({plan.steps[i]->writes, phase, 0});
        }
        last_read[plan.output] = plan.phase_ends.size();
        plan.values.resize(values_.size());
        std::vector<Life> placed;
        for (Life life : lives) {
            life.last = last_read[life.value];
            Placement& place = plan.values[std::size_t(life.value)];
            place.bytes = bytes_of(life.value);
            std::vector<Placement> taken;
            for (const Life& other : placed)
                if (other.last >= life.first) taken.push_back(plan.values[std::size_t(other.value)]);
            std::sort(taken.begin(), taken.end(), [](const Placement& a, const Placement& b) { return a.offset < b.offset; });
            for (const Placement& other : taken) {
                if (place.offset + place.bytes <= other.offset) break;
                place.offset = std::max(place.offset, other.offset + other.bytes);
            }
            plan.arena_bytes = std::max(plan.arena_bytes, place.offset + place.bytes);
            placed.push_back(life);
        }
    }

    const Program& program_;
    const kernels::Kernels* kernels_;
    Grouping grouping_;
    std::unordered_map<std::string, int> numbers_;
    std::vector<const Value*> values_;
};

}  // namespace

Plan make_plan(const Program& program, const kernels::Kernels* kernels) { return Planner(program, kernels).plan(); }

}  // namespace vitquant
