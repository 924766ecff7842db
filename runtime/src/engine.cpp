#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <new>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "codes.hpp"
#include "error.hpp"
#include "plan/explain.hpp"

namespace vitquant {
namespace {

constexpr size_t kMaxThreads = 256;
constexpr size_t kArenaBytes = size_t{8} << 20;  // images are taken together as long as their values fit

size_t available_processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return size_t(std::max(1, CPU_COUNT(&set)));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

struct AlignedDelete {
    void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Bytes = std::unique_ptr<uint8_t[], AlignedDelete>;

Bytes allocate(size_t bytes) {
    return Bytes(static_cast<uint8_t*>(::operator new[](bytes + 64, std::align_val_t{64})));
}

// Stands for no instruction set, but for operations that are executed one by one.
constexpr const char* kPlain = "plain";

constexpr const char* kSets[] = {"avx512vbmi", "avx512vnni", "avxvnni", "avx2", "neondot", "portable"};

struct Choice {
    std::string name;
    const kernels::Kernels& kernels;
    Fusion fusion;
};

Choice choose(const std::string& isa) {
    if (isa == kPlain) return {kPlain, *kernels::portable(), Fusion::none};
    const kernels::Kernels* found = kernels::select(isa.empty() ? nullptr : isa.c_str());
    if (found) return {found->name, *found, Fusion::all};
    std::string known;
    for (const char* name : kSets)
        if (kernels::select(name)) known += std::string(name) + ", ";
    refuse("VITQUANT_ISA", "this machine or this build does not have the instruction set", isa,
           "one of " + known + kPlain + ", or nothing for the quickest");
}

std::string wanted_isa() {
    const char* isa = std::getenv("VITQUANT_ISA");
    return isa ? isa : "";
}

// The outputs of these names, in this order; the first of the program if there are none.
std::vector<const Output*> chosen(const Program& program, const std::vector<std::string>& names) {
    if (names.empty()) return {&program.outputs.front()};
    std::vector<const Output*> found;
    for (const std::string& name : names) {
        const auto output = std::find_if(program.outputs.begin(), program.outputs.end(),
                                         [&](const Output& o) { return o.name == name; });
        if (output == program.outputs.end()) {
            std::string known;
            for (const Output& o : program.outputs) known += (known.empty() ? "" : ", ") + o.name;
            refuse("outputs", "the program has no output of this name", name, "one of " + known);
        }
        if (std::find(found.begin(), found.end(), &*output) != found.end())
            refuse("outputs", "an output is named twice", name);
        found.push_back(&*output);
    }
    return found;
}

std::vector<std::string> values_of(const std::vector<const Output*>& outputs) {
    std::vector<std::string> names;
    for (const Output* output : outputs) names.push_back(output->value);
    return names;
}

Engine::Output described(const Output& output, const Value& value, int number) {
    Engine::Output found{output.name, value.shape, value.scale, value.spread_zero(), value.type(), number};
    if (output.pooled) found.shape = {value.shape[1]};
    const size_t groups = value.scale.size(), channels = found.zero.size();
    if (groups > 1) {
        found.scale.clear();
        for (size_t c = 0; c < channels; ++c) found.scale.push_back(value.scale[c / (channels / groups)]);
    }
    return found;
}

// Rows of codes less their zero points.
void write_output(const Engine::Output& output, const uint8_t* codes, size_t images, int32_t* to) {
    const size_t channels = output.zero.size(), rows = images * output.elements() / channels;
    const int32_t* zero = output.zero.data();
    with_codes(output.type, codes, [&](const auto* from) {
        for (size_t r = 0; r < rows; ++r, from += channels, to += channels)
            for (size_t c = 0; c < channels; ++c) to[c] = from[c] - zero[c];
    });
}

size_t checked_threads(size_t threads) {
    if (threads > kMaxThreads)
        refuse("threads", "too many", std::to_string(threads), "at most " + std::to_string(kMaxThreads));
    return threads ? threads : available_processors();
}

}  // namespace

// Memory of one run at a time.
class Engine::Workspace {
public:
    void reserve(const Plan& plan, size_t images, size_t threads) {
        if (images > images_) {
            arena_.reset();
            arena_ = allocate(plan.arena_bytes * images);
            images_ = images;
        }
        if (scratch_.size() < threads) {
            values_.resize(plan.values.size());
            while (scratch_.size() < threads) scratch_.push_back(allocate(plan.scratch_bytes));
        }
    }

    // Where the values lie while so many images are computed.
    void lay_out(const Plan& plan, const uint8_t* images, size_t count) {
        for (size_t i = 0; i < values_.size(); ++i) values_[i] = arena_.get() + plan.values[i].offset * count;
        values_[0] = const_cast<uint8_t*>(images);  // nothing writes the image
    }

    Frame frame(size_t count, size_t threads, size_t worker) const {
        return {count, threads, values_.data(), scratch_[worker].get()};
    }

    const uint8_t* value(int number) const { return values_[size_t(number)]; }

private:
    Bytes arena_;
    size_t images_ = 0;
    std::vector<uint8_t*> values_;
    std::vector<Bytes> scratch_;
};

class Engine::Run final : public Job {
public:
    Run(const Plan& plan, const Workspace& workspace, size_t images, size_t threads)
        : plan_(plan), workspace_(workspace), images_(images), threads_(threads) {}

    size_t phases() const override { return plan_.phases.size(); }

    size_t tasks(size_t phase) const override {
        size_t count = 0;
        for (const Unit& unit : plan_.phases[phase]) count += unit.tasks(images_, threads_);
        return count;
    }

    void execute(size_t phase, size_t task, size_t worker) override {
        for (const Unit& unit : plan_.phases[phase]) {
            const size_t tasks = unit.tasks(images_, threads_);
            if (task < tasks) return unit.run(workspace_.frame(images_, threads_, worker), task);
            task -= tasks;
        }
    }

private:
    const Plan& plan_;
    const Workspace& workspace_;
    size_t images_, threads_;
};

size_t Engine::Output::elements() const {
    size_t count = 1;
    for (int64_t n : shape) count *= size_t(n);
    return count;
}

Engine::Engine(const Program& program, const std::vector<std::string>& outputs, size_t threads, const std::string& isa,
               Interrupt* interrupt)
    : image_shape_(program.image.shape), image_bytes_(size_t(program.image.elements())), metadata_(program.metadata),
      pool_(checked_threads(threads)) {
    const std::vector<const vitquant::Output*> given = chosen(program, outputs);
    const Choice choice = choose(isa);
    isa_ = choice.name;
    plan_ = make_plan(program, values_of(given), choice.kernels, choice.fusion, interrupt);
    for (size_t i = 0; i < given.size(); ++i) {
        const int number = plan_.outputs[i];
        outputs_.push_back(described(*given[i], program.operations[size_t(number - 1)].out, number));
    }
    for (const vitquant::Output& output : program.outputs) output_names_.push_back(output.name);
    images_at_once_ = std::max<size_t>(1, kArenaBytes / std::max<size_t>(plan_.arena_bytes, 1));
}

Engine::~Engine() = default;

std::unique_ptr<Engine::Workspace> Engine::take_workspace() const {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || spare_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> workspace = std::move(spare_.back());
    spare_.pop_back();
    return workspace;
}

void Engine::give_back(std::unique_ptr<Workspace> workspace) const {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) spare_.push_back(std::move(workspace));
}

void Engine::run(const uint8_t* images, size_t count, int32_t* const* results, size_t written,
                 Interrupt* interrupt) const {
    if (!count) return;
    std::unique_ptr<Workspace> workspace = take_workspace();
    workspace->reserve(plan_, std::min(count, images_at_once_), threads());
    // As equal portions as possible: none is left with a single image for all threads.
    const size_t portions = (count + images_at_once_ - 1) / images_at_once_;
    for (size_t i = 0; i < portions; ++i) {
        const Rows portion = share(count, i, portions);
        workspace->lay_out(plan_, images + portion.first * image_bytes_, portion.count());
        Run run(plan_, *workspace, portion.count(), threads());
        pool_.run(run, interrupt);
        for (size_t n = 0; n < written; ++n) {
            const Output& output = outputs_[n];
            write_output(output, workspace->value(output.value), portion.count(),
                         results[n] + portion.first * output.elements());
        }
    }
    give_back(std::move(workspace));
}

std::vector<Engine::Timing> Engine::profile(const uint8_t* images, size_t count, Interrupt* interrupt) const {
    std::vector<Timing> found;
    for (const auto& step : plan_.steps) found.push_back({step->label, 0});
    std::unique_ptr<Workspace> workspace = take_workspace();
    workspace->reserve(plan_, std::min(count, images_at_once_), threads());
    const size_t portions = (count + images_at_once_ - 1) / images_at_once_;
    for (size_t p = 0; p < portions; ++p) {
        const Rows portion = share(count, p, portions);
        workspace->lay_out(plan_, images + portion.first * image_bytes_, portion.count());
        const Frame frame = workspace->frame(portion.count(), 1, 0);
        for (size_t i = 0; i < plan_.steps.size(); ++i) {
            const auto start = std::chrono::steady_clock::now();
            for (size_t task = 0, tasks = plan_.steps[i]->tasks(frame.images, 1); task < tasks; ++task) {
                plan_.steps[i]->run(frame, task);
                go_on(interrupt);
            }
            found[i].seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        }
    }
    give_back(std::move(workspace));
    return found;
}

std::unique_ptr<Engine> load_engine(const std::string& path, const std::vector<std::string>& outputs, size_t threads,
                                    Interrupt* interrupt) {
    const ProgramFiles files = read_program_files(path, interrupt);
    const Program program = decode_program(files.manifest, files.tensors, files.where, Digests::checked, interrupt);
    return std::make_unique<Engine>(program, outputs, threads, wanted_isa(), interrupt);
}

std::unique_ptr<Engine> load_engine(std::string_view manifest, std::string_view tensors,
                                    const std::vector<std::string>& outputs, size_t threads, Interrupt* interrupt) {
    const Program program = decode_program(manifest, tensors, "program.json", Digests::checked, interrupt);
    return std::make_unique<Engine>(program, outputs, threads, wanted_isa(), interrupt);
}

std::string explain_program(const std::string& path, const std::vector<std::string>& outputs, Interrupt* interrupt) {
    const ProgramFiles files = read_program_files(path, interrupt);
    const Program program = decode_program(files.manifest, files.tensors, files.where, Digests::checked, interrupt);
    const std::vector<const Output*> given = chosen(program, outputs);
    const Choice choice = choose(wanted_isa());
    const Plan plan = make_plan(program, values_of(given), choice.kernels, choice.fusion, interrupt);
    return explain(program, given, plan, choice.name);
}

}  // namespace vitquant
