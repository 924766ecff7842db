// Runs programs with known results: engine_check FOLDER [THREADS]
//
// FOLDER is what make_programs.py wrote. Every instruction set that the machine has, 1 to 3 threads (or as many as are
// asked for), and several callers of one engine at the same time must give the outputs that are given; a second run of
// a size must allocate nothing; and after a run that was interrupted, wherever that was, the next one is right. Meant
// for builds with sanitizers.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "engine.hpp"
#include "error.hpp"
#include "interrupt.hpp"
#include "vitquant_runtime.h"

namespace fs = std::filesystem;
using vitquant::Engine;

namespace {
std::atomic<size_t> allocations{0};
}

void* operator new(size_t bytes) {
    ++allocations;
    if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
    throw std::bad_alloc();
}

void* operator new(size_t bytes, std::align_val_t alignment) {
    ++allocations;
    const auto unit = static_cast<size_t>(alignment);
    if (void* memory = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return memory;
    throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

std::string read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Ends a computation when it has been asked so many times.
class Countdown final : public vitquant::Interrupt {
public:
    explicit Countdown(size_t left) : Interrupt(std::chrono::nanoseconds::zero()), left_(left) {}

    bool is_over() const { return left_ == 0; }

private:
    bool ask() override { return --left_ == 0; }

    size_t left_;
};

struct Case {
    std::string images;
    std::vector<std::string> outputs;  // what each output must be
    size_t count;

    // Of the first outputs, as many as the engine computes.
    bool agrees(const Engine& engine, size_t first, size_t images_taken) const {
        const size_t bytes = images.size() / count;
        std::vector<std::vector<int32_t>> found;
        std::vector<int32_t*> to;
        for (const Engine::Output& output : engine.outputs()) found.emplace_back(images_taken * output.elements());
        for (std::vector<int32_t>& result : found) to.push_back(result.data());
        engine.run(reinterpret_cast<const uint8_t*>(images.data()) + first * bytes, images_taken, to.data(), to.size());
        for (size_t i = 0; i < found.size(); ++i) {
            const size_t size = found[i].size() * 4;
            if (std::string_view(reinterpret_cast<const char*>(found[i].data()), size) !=
                std::string_view(outputs[i]).substr(first * size / images_taken, size))
                return false;
        }
        return true;
    }
};

// All outputs by the C interface, chosen by name.
bool agrees_in_c(const fs::path& folder, const Case& known) {
    char error[256];
    vitquant_program* first = vitquant_load(folder.c_str(), 1, error, sizeof error);
    if (!first) return false;
    std::vector<const char*> names;
    for (const char* const* name = vitquant_output_names(first); *name; ++name) names.push_back(*name);
    vitquant_program* whole = vitquant_load_outputs(folder.c_str(), names.data(), names.size(), 1, error, sizeof error);
    bool right = whole && names.size() == known.outputs.size() && vitquant_chosen_outputs(whole) == names.size() &&
                 vitquant_chosen_outputs(first) == 1;
    std::vector<std::vector<int32_t>> found;
    std::vector<int32_t*> to;
    for (size_t i = 0; right && i < names.size(); ++i) {
        size_t shape[2] = {1, 1};
        const size_t axes = vitquant_output_shape(whole, i, shape), elements = shape[0] * shape[1];
        right = std::string_view(vitquant_output_name(whole, i)) == names[i] && axes >= 1 && axes <= 2 &&
                elements * 4 * known.count == known.outputs[i].size() &&
                vitquant_output_scale(whole, i, shape[axes - 1] - 1) > 0;
        if (i == 0)
            right = right && elements == vitquant_outputs(first) &&
                    vitquant_scale(first, elements - 1) == vitquant_output_scale(whole, 0, shape[axes - 1] - 1);
        found.emplace_back(elements * known.count);
    }
    for (std::vector<int32_t>& result : found) to.push_back(result.data());
    const auto* images = reinterpret_cast<const uint8_t*>(known.images.data());
    right = right && vitquant_run_outputs(whole, images, known.count, to.data()) == 0;
    for (size_t i = 0; right && i < found.size(); ++i)
        right =
            std::string_view(reinterpret_cast<const char*>(found[i].data()), found[i].size() * 4) == known.outputs[i];
    right = right && vitquant_run(first, images, known.count, to[0]) == 0 &&
            std::string_view(reinterpret_cast<const char*>(to[0]), found[0].size() * 4) == known.outputs[0];
    const char* nothing = "nothing of this name";
    right = right && !vitquant_load_outputs(folder.c_str(), &nothing, 1, 1, error, sizeof error) &&
            std::string_view(error).find(names[0]) != std::string_view::npos;
    vitquant_free(first);
    vitquant_free(whole);
    return right;
}

bool check(const fs::path& folder, const std::string& isa, size_t threads) {
    const vitquant::ProgramFiles files = vitquant::read_program_files(folder.string());
    const vitquant::Program program = vitquant::decode_program(files.manifest, files.tensors, files.where);
    const Engine engine(program, {}, threads, isa);
    Case known{read(folder / "images.u8"), {}, 0};
    for (size_t i = 0; i < program.outputs.size(); ++i)
        known.outputs.push_back(read(folder / ("output" + std::to_string(i) + ".i32")));
    known.count = known.images.size() / size_t(program.image.elements());
    std::atomic<bool> right{known.agrees(engine, 0, known.count)};
    const Engine whole(program, engine.output_names(), threads, isa);
    if (!known.agrees(whole, 0, known.count)) right = false;
    const auto quickest = vitquant::load_engine(files.manifest, files.tensors, {}, threads);
    if (!known.agrees(*quickest, 0, known.count) || !agrees_in_c(folder, known)) right = false;
    std::vector<int32_t> logits(known.count * engine.outputs().front().elements());
    const size_t before = allocations;
    engine.run(reinterpret_cast<const uint8_t*>(known.images.data()), known.count, logits.data());
    if (allocations != before) {
        std::printf("%zu allocations in a second run\n", allocations - before);
        right = false;
    }
    std::vector<std::thread> callers;
    for (size_t caller = 0; caller < 3; ++caller)
        callers.emplace_back([&, caller] {
            for (size_t i = 0; i < 4; ++i) {
                const size_t first = (caller + i) % known.count;
                if (!known.agrees(engine, first, std::min(known.count - first, i + 1))) right = false;
            }
        });
    for (std::thread& caller : callers) caller.join();
    for (size_t asked = 1; asked < 2000; asked = asked * 3 / 2 + 1) {
        Countdown countdown(asked);
        try {
            engine.run(reinterpret_cast<const uint8_t*>(known.images.data()), known.count, logits.data(), &countdown);
            if (countdown.is_over()) right = false;
            break;  // it ended before
        } catch (const vitquant::Interrupted&) {
        }
        if (!known.agrees(engine, 0, 1)) right = false;
    }
    return right;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) return 2;
    const size_t only = argc > 2 ? size_t(std::atoi(argv[2])) : 0;
    std::vector<std::string> sets{"plain"};
    for (const char* isa : {"portable", "avx2", "avxvnni", "avx512vnni", "avx512vbmi", "neondot"})
        if (vitquant::kernels::select(isa)) sets.emplace_back(isa);
    int failures = 0, checked = 0;
    for (const auto& entry : fs::directory_iterator(argv[1])) {
        if (!fs::exists(entry.path() / "program.json")) continue;
        for (const std::string& isa : sets) {
            for (size_t threads = only ? only : 1; threads <= (only ? only : 3); ++threads, ++checked) {
                if (check(entry.path(), isa, threads)) continue;
                std::printf("%s: other outputs with %s on %zu threads\n", entry.path().c_str(), isa.c_str(), threads);
                ++failures;
            }
        }
    }
    for (const std::string& isa : sets) std::printf("%s ", isa.c_str());
    std::printf("- %d checked, %d failed\n", checked, failures);
    return failures || !checked;
}
