#include "plan/plan.hpp"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "ops/kind.hpp"
#include "plan/grouping.hpp"

namespace vitquant {
namespace {

constexpr size_t kChainedRows = 32;  // fewer of an image are not enough to share them out
constexpr size_t kPanelRows = 48;    // few enough for their values to stay in the nearer cache
constexpr size_t kRowGrain = 12;     // a multiple of the rows that kernels take at once

size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

class Planner {
public:
    Planner(const Program& program, const std::vector<std::string>& outputs, const kernels::Kernels& kernels,
            Fusion fusion)
        : fusion_(fusion), outputs_(outputs), grouping_(group(program, outputs, fusion == Fusion::all)),
          context_{kernels, {}, grouping_.only_row} {
        add(program.image);
        for (const Operation& op : program.operations) add(op.out);
    }

    Plan plan(Interrupt* interrupt) {
        Plan plan;
        for (const Node& node : grouping_.nodes) {
            go_on(interrupt);
            std::unique_ptr<Step> step = make(node.operations);
            for (const std::string& name : node.reads) step->reads.push_back(numbers_.at(name));
            step->writes = numbers_.at(node.writes());
            for (const Operation* op : node.operations)
                step->label += (step->label.empty() ? "" : "+") + std::string(op->kind->name);
            plan.scratch_bytes = std::max(plan.scratch_bytes, rounded(step->scratch_bytes()));
            plan.steps.push_back(std::move(step));
        }
        for (const std::string& name : outputs_) plan.outputs.push_back(numbers_.at(name));
        for (const Value* value : values_) plan.only_row.push_back(context_.row_of(value->name));
        plan.phases = phases(plan);
        place(plan);
        return plan;
    }

private:
    void add(const Value& value) {
        numbers_.emplace(value.name, static_cast<int>(values_.size()));
        values_.push_back(&value);
        context_.values.emplace(value.name, &value);
    }

    std::unique_ptr<Step> make(const std::vector<const Operation*>& ops) const {
        if (ops.size() == 3) return make_attention_step(*ops[0], *ops[1], *ops[2], context_);
        if (ops.size() == 2) return make_linear_step(*ops[0], *ops[1], context_);
        return ops[0]->kind->make_step(*ops[0], context_);
    }

    static bool contains(const std::vector<int>& values, int value) {
        return std::find(values.begin(), values.end(), value) != values.end();
    }

    // Whether a step can go on with each panel of rows right after the unit has made it. Its tasks are of rows only
    // then, which would be too few threads' work where rows are few.
    bool continues(const Unit& unit, const Step& step) const {
        const RowExtent extent = step.extent();
        return fusion_ == Fusion::all && extent.rows >= kChainedRows && unit.steps().back()->extent() == extent;
    }

    // Neighbouring steps of which none reads what another makes may run at the same time.
    std::vector<std::vector<Unit>> phases(const Plan& plan) const {
        std::vector<std::vector<Unit>> found;
        std::vector<int> written;
        for (const auto& step : plan.steps) {
            const bool waits =
                std::any_of(step->reads.begin(), step->reads.end(), [&](int v) { return contains(written, v); });
            if (!found.empty() && found.back().size() == 1 && continues(found.back().back(), *step)) {
                found.back().back().append(step.get());
            } else if (found.empty() || waits) {
                found.push_back({Unit(step.get())});
                written.clear();
            } else {
                found.back().push_back(Unit(step.get()));
            }
            written.push_back(step->writes);
        }
        return found;
    }

    size_t bytes_of(int value) const {
        const Value& v = *values_[size_t(value)];
        const auto rows = static_cast<size_t>(v.shape[0]);
        const size_t all = static_cast<size_t>(v.elements()) * size_of(v.type());
        return rounded(context_.row_of(v.name) == kAllRows ? all : all / rows);
    }

    // Values share memory where one is no longer read when the other is made; each takes the lowest place that is free
    // throughout its life, in the order in which they are made.
    void place(Plan& plan) const {
        struct Life {
            int value;
            size_t first, last;  // phases
        };
        std::unordered_map<int, size_t> last_read;
        std::vector<Life> lives;
        for (size_t phase = 0; phase < plan.phases.size(); ++phase)
            for (const Unit& unit : plan.phases[phase])
                for (const Step* step : unit.steps()) {
                    for (int value : step->reads) last_read[value] = phase;
                    last_read[step->writes] = phase;
                    lives.push_back({step->writes, phase, 0});
                }
        for (int output : plan.outputs) last_read[output] = plan.phases.size();
        plan.values.resize(values_.size());
        std::vector<Life> placed;
        for (Life life : lives) {
            life.last = last_read[life.value];
            Placement& place = plan.values[size_t(life.value)];
            place.bytes = bytes_of(life.value);
            std::vector<Placement> taken;
            for (const Life& other : placed)
                if (other.last >= life.first) taken.push_back(plan.values[size_t(other.value)]);
            std::sort(taken.begin(), taken.end(),
                      [](const Placement& a, const Placement& b) { return a.offset < b.offset; });
            for (const Placement& other : taken) {
                if (place.offset + place.bytes <= other.offset) break;
                place.offset = std::max(place.offset, other.offset + other.bytes);
            }
            plan.arena_bytes = std::max(plan.arena_bytes, place.offset + place.bytes);
            placed.push_back(life);
        }
    }

    Fusion fusion_;
    const std::vector<std::string>& outputs_;
    Grouping grouping_;
    Context context_;
    std::unordered_map<std::string, int> numbers_;
    std::vector<const Value*> values_;
};

}  // namespace

size_t Unit::tasks(size_t images, size_t threads) const {
    if (steps_.size() == 1) return steps_[0]->tasks(images, threads);
    // As many panels for each thread as for every other.
    const size_t rows = images * steps_[0]->extent().rows, round = threads * kPanelRows;
    return std::min((rows + kRowGrain - 1) / kRowGrain, (rows + round - 1) / round * threads);
}

void Unit::run(const Frame& frame, size_t task) const {
    if (steps_.size() == 1) return steps_[0]->run(frame, task);
    const Rows rows =
        share(frame.images * steps_[0]->extent().rows, task, tasks(frame.images, frame.threads), kRowGrain);
    for (const Step* step : steps_) step->run_rows(frame, rows);
}

Plan make_plan(const Program& program, const std::vector<std::string>& outputs, const kernels::Kernels& kernels,
               Fusion fusion, Interrupt* interrupt) {
    return Planner(program, outputs, kernels, fusion).plan(interrupt);
}

}  // namespace vitquant
