#include "plan/explain.hpp"

#include <algorithm>
#include <unordered_set>

#include "error.hpp"
#include "format/json.hpp"

namespace vitquant {
namespace {

// Rows of text in aligned columns; those of numbers are aligned to the right.
class Table {
public:
    explicit Table(std::vector<std::string> head) { add(std::move(head)); }

    void add(std::vector<std::string> row) {
        widths_.resize(row.size());
        for (size_t i = 0; i < row.size(); ++i) widths_[i] = std::max(widths_[i], row[i].size());
        rows_.push_back(std::move(row));
    }

    std::string text(const std::vector<bool>& numbers) const {
        std::string out;
        for (const auto& row : rows_) {
            std::string line;
            for (size_t i = 0; i < row.size(); ++i) {
                const std::string padding(widths_[i] - row[i].size(), ' ');
                line += (i ? "  " : "") + (numbers[i] ? padding + row[i] : row[i] + padding);
            }
            out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
        }
        return out;
    }

private:
    std::vector<std::vector<std::string>> rows_;
    std::vector<size_t> widths_;
};

std::string with_commas(size_t number) {
    std::string text = std::to_string(number);
    for (size_t at = text.size(); at > 3;) text.insert(at -= 3, ",");
    return text;
}

std::string counted(size_t count, const std::string& noun) {
    return with_commas(count) + " " + noun + (count == 1 ? "" : "s");
}

std::string joined(const std::vector<std::string>& parts) {
    std::string out;
    for (const std::string& part : parts) out += (out.empty() ? "" : ", ") + part;
    return out;
}

class Explanation {
public:
    Explanation(const Program& program, const std::vector<const Output*>& chosen, const Plan& plan,
                const std::string& isa)
        : program_(program), chosen_(chosen), plan_(plan), isa_(isa), values_{&program.image} {
        for (const Operation& op : program.operations) values_.push_back(&op.out);
        for (size_t phase = 0; phase < plan.phases.size(); ++phase)
            for (const Unit& unit : plan.phases[phase])
                for (const Step* step : unit.steps()) {
                    lives_.push_back({step->writes, phase, phase});
                    for (Life& life : lives_)
                        if (std::count(step->reads.begin(), step->reads.end(), life.value)) life.last = phase;
                }
    }

    std::string text() const { return head() + "\n" + steps() + "\n" + memory() + "\n" + left_out(); }

private:
    struct Life {
        int value;
        size_t first, last;  // phases
    };

    const Value& value(int number) const { return *values_[size_t(number)]; }
    bool is_stored(size_t number) const { return plan_.values[number].bytes > 0; }

    std::string head() const {
        const Json metadata = parse_json(program_.metadata, {8, 20, program_.metadata.size()}, "metadata");
        const Json* model = metadata.find("model");
        Table table({"model", model && model->type == Json::Type::string ? printable(model->text) : "unnamed"});
        table.add({"image", std::string(name_of(program_.image.type())) + " " + describe_shape(program_.image.shape)});
        for (const Output* output : chosen_) table.add({"output", described(*output)});
        for (const Output& output : program_.outputs)
            if (std::find(chosen_.begin(), chosen_.end(), &output) == chosen_.end())
                table.add({"not computed", described(output)});
        table.add({"instruction set", isa_ + " (the environment variable VITQUANT_ISA selects another)"});
        table.add({"operations", counted(program_.operations.size(), "operation") + ", executed as " +
                                     counted(plan_.steps.size(), "step") + " in " +
                                     counted(plan_.phases.size(), "phase")});
        return table.text({false, false});
    }

    std::string described(const Output& output) const {
        const auto made =
            std::find_if(values_.begin(), values_.end(), [&](const Value* v) { return v->name == output.value; });
        const std::vector<int64_t>& shape = (*made)->shape;
        return output.name + " " + describe_shape(output.pooled ? std::vector<int64_t>{shape[1]} : shape) +
               (output.name == output.value ? "" : ", the value " + output.value);
    }

    std::string shape_of(int number) const {
        const int64_t row = plan_.only_row[size_t(number)];
        const std::string shape = describe_shape(value(number).shape);
        return row < 0 ? shape : "row " + std::to_string(row) + " of " + shape;
    }

    std::string steps() const {
        Table table({"phase", "step", "operations", "reads", "result", "shape", "code"});
        size_t number = 0;
        bool has_panels = false;
        for (size_t phase = 0; phase < plan_.phases.size(); ++phase)
            for (const Unit& unit : plan_.phases[phase]) {
                const bool panels = unit.steps().size() > 1;
                has_panels = has_panels || panels;
                for (const Step* step : unit.steps()) {
                    std::vector<std::string> reads;
                    for (int read : step->reads) reads.push_back(value(read).name);
                    table.add({std::to_string(phase + 1) + (panels ? "*" : " "), std::to_string(++number), step->label,
                               joined(reads), value(step->writes).name, shape_of(step->writes), step->code});
                }
            }
        return "STEPS\n"
               "A step executes one operation, or several joined by +, whose intermediate results are never stored.\n"
               "The steps of a phase run at the same time, if there are threads for them; phases follow each other.\n" +
               std::string(has_panels ? "In phases marked *, each step handles a panel of rows, then the next step the "
                                        "same rows, while they are in the cache.\n"
                                      : "") +
               "Code is the instruction set, or scalar where no faster code exists for these types.\n\n" +
               table.text({true, true, false, false, false, false, false});
    }

    std::string memory() const {
        Table table({"offset", "bytes", "value", "type", "shape", "phases"});
        for (const Life& life : lives_) {
            const Placement& place = plan_.values[size_t(life.value)];
            const Value& v = value(life.value);
            const bool stays = std::count(plan_.outputs.begin(), plan_.outputs.end(), life.value);
            const std::string last = stays ? "end" : std::to_string(life.last + 1);
            table.add({with_commas(place.offset), with_commas(place.bytes), v.name, name_of(v.type()),
                       shape_of(life.value), std::to_string(life.first + 1) + " to " + last});
        }
        return "MEMORY\n"
               "All results lie in one arena of " +
               with_commas(plan_.arena_bytes) + " bytes per image; each thread has " +
               with_commas(plan_.scratch_bytes) +
               " bytes of scratch memory.\n"
               "Results that are not needed in the same phases may share their place.\n\n" +
               table.text({true, true, false, false, false, false});
    }

    std::string left_out() const {
        std::unordered_set<std::string> needed;
        for (const Output* output : chosen_) needed.insert(output->value);
        for (auto op = program_.operations.rbegin(); op != program_.operations.rend(); ++op)
            if (needed.count(op->out.name)) needed.insert(op->reads.begin(), op->reads.end());
        std::vector<std::string> unread, pruned;
        size_t fused = 0;
        for (size_t i = 1; i < values_.size(); ++i) {
            const std::string& name = values_[i]->name;
            if (!needed.count(name)) unread.push_back(name);
            else if (!is_stored(i)) ++fused;
            if (plan_.only_row[i] >= 0) pruned.push_back(name);
        }
        std::string out = "LEFT OUT\n";
        if (!unread.empty()) out += "Not computed, as no chosen output depends on it: " + joined(unread) + "\n";
        if (!pruned.empty()) out += "Computed for a single row, as nothing reads the others: " + joined(pruned) + "\n";
        if (fused) out += "Never stored, as one step makes and uses it: " + counted(fused, "result") + "\n";
        return unread.empty() && pruned.empty() && !fused ? out + "Nothing\n" : out;
    }

    const Program& program_;
    const std::vector<const Output*>& chosen_;
    const Plan& plan_;
    const std::string& isa_;
    std::vector<const Value*> values_;  // by number
    std::vector<Life> lives_;
};

}  // namespace

std::string explain(const Program& program, const std::vector<const Output*>& chosen, const Plan& plan,
                    const std::string& isa) {
    return Explanation(program, chosen, plan, isa).text();
}

}  // namespace vitquant
