// Hostile files: whatever the bytes, the loader gives a program or an Error, and a program can be run.
//
// With clang this is a libFuzzer target (give it FOLDER/seeds as its corpus). Elsewhere it mutates by itself:
// loader_fuzz FOLDER [SECONDS], where FOLDER is what make_programs.py wrote. An input is the length of the manifest in
// four bytes, the manifest, the tensors; digests are not looked at, as they would turn away everything at the door.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "engine.hpp"
#include "error.hpp"
#include "vitquant_runtime.h"

namespace {

constexpr size_t kArenaLimit = size_t{1} << 26;  // larger programs are well formed, but slow to run

size_t manifest_length(std::string_view input) {
    size_t length = 0;
    for (int i = 3; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(input[size_t(i)]);
    return length;
}

// With its digests, as callers of the C interface load a program.
bool loads_from_memory(const std::string& manifest, const std::string& tensors) {
    char error[64];
    vitquant_program* program =
        vitquant_load_bytes(manifest.data(), manifest.size(), tensors.data(), tensors.size(), 1, error, sizeof error);
    vitquant_free(program);
    return program != nullptr;
}

void run(const vitquant::Engine& engine, const std::vector<uint8_t>& image) {
    std::vector<std::vector<int32_t>> results;
    std::vector<int32_t*> to;
    for (const auto& output : engine.outputs()) results.emplace_back(output.elements());
    for (auto& result : results) to.push_back(result.data());
    engine.run(image.data(), 1, to.data(), to.size());
}

bool try_input(std::string_view input) {
    if (input.size() < 4) return false;
    const size_t length = std::min(manifest_length(input), input.size() - 4);
    input.remove_prefix(4);
    // Copies of the exact sizes: a sanitizer sees a read beyond their ends.
    const std::string manifest(input.substr(0, length)), tensors(input.substr(length));
    const bool loads = loads_from_memory(manifest, tensors);
    try {
        const vitquant::Program program =
            vitquant::decode_program(manifest, tensors, "input", vitquant::Digests::ignored);
        int64_t elements = program.image.elements();
        for (const auto& op : program.operations) elements = std::max(elements, op.out.elements());
        if (elements > int64_t(kArenaLimit / 4)) return true;
        std::vector<std::string> names;
        for (const auto& output : program.outputs) names.push_back(output.name);
        const std::vector<uint8_t> image(size_t(program.image.elements()), 77);
        for (const auto& chosen : {std::vector<std::string>{}, names}) {
            const vitquant::Engine engine(program, chosen, 1, "");
            run(engine, image);
        }
        return true;
    } catch (const vitquant::Error&) {
        if (loads) std::abort();  // nothing may pass that is refused without regard to digests
        return false;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try_input({reinterpret_cast<const char*>(data), size});
    return 0;
}

#ifdef VITQUANT_OWN_FUZZER
namespace {

using Random = std::mt19937_64;

// Changes that a parser may trip over: digits, brackets, pieces moved, cut out, doubled.
void mutate(std::string& input, Random& random) {
    const auto below = [&](size_t n) { return size_t(random() % std::max<size_t>(n, 1)); };
    static const char* const pieces[] = {"0",
                                         "-1",
                                         "9223372036854775807",
                                         "4611686018427387904",
                                         "1e9",
                                         "[",
                                         "]",
                                         "{",
                                         "}",
                                         "\"",
                                         ",",
                                         "65536",
                                         "null",
                                         "true",
                                         "\\u0000",
                                         "\xff",
                                         "268435456"};
    const size_t length = manifest_length(input);
    // Half of the changes in the manifest, a quarter in the header of the tensors, the rest anywhere.
    const size_t kind = below(4);
    const size_t begin = kind == 2 ? std::min(4 + length, input.size()) : 4;
    const size_t span = kind < 2 ? length : kind == 2 ? 3000 : input.size();
    const size_t at = std::min(begin + below(span), input.size() - 1);
    switch (below(7)) {
        case 0: input[at] = static_cast<char>(random()); break;
        case 1: input[at] = static_cast<char>(input[at] ^ (1 << below(8))); break;
        case 2: input[at] = "0123456789-.,:[]{}\""[below(19)]; break;
        case 3: input.insert(at, pieces[below(sizeof pieces / sizeof *pieces)]); break;
        case 4: input.erase(at, 1 + below(20)); break;
        case 5: input.insert(at, input.substr(below(input.size()), below(40))); break;
        default: input.resize(std::max<size_t>(8, at)); break;
    }
}

// A number in the manifest replaced by another, which keeps the rest readable.
void change_number(std::string& input, Random& random) {
    for (int tries = 0; tries < 50; ++tries) {
        size_t at = 4 + size_t(random() % (input.size() - 4));
        if (input[at] < '0' || input[at] > '9') continue;
        size_t end = at;
        while (end < input.size() && input[end] >= '0' && input[end] <= '9') ++end;
        const size_t before = end - at;
        static const char* const numbers[] = {"0",     "1",     "2",          "3",          "7",
                                              "15",    "16",    "255",        "256",        "32767",
                                              "65535", "65536", "1073741824", "2147483648", "268435456"};
        const std::string number = random() % 2 ? std::to_string(random() % 70) : numbers[random() % 15];
        input.replace(at, before, number);
        const size_t length = manifest_length(input) + number.size() - before;
        for (int i = 0; i < 4; ++i) input[size_t(i)] = static_cast<char>(length >> (8 * i));
        return;
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) return 2;
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(argc > 2 ? std::atoi(argv[2]) : 20);
    std::vector<std::string> seeds;
    for (const auto& entry : std::filesystem::directory_iterator(std::string(argv[1]) + "/seeds")) {
        std::ifstream file(entry.path(), std::ios::binary);
        seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        const std::string& seed = seeds.back();
        if (!try_input(seed)) return std::printf("%s is refused as it is\n", entry.path().c_str()), 1;
        const size_t length = manifest_length(seed);
        if (!loads_from_memory(seed.substr(4, length), seed.substr(4 + length)))
            return std::printf("%s is refused from memory\n", entry.path().c_str()), 1;
    }
    if (seeds.empty()) return 2;
    Random random(1);
    size_t tried = 0, accepted = 0;
    while (std::chrono::steady_clock::now() < until) {
        std::string input = seeds[random() % seeds.size()];
        for (size_t i = 0, changes = 1 + random() % 3; i < changes; ++i)
            random() % 2 ? mutate(input, random) : change_number(input, random);
        accepted += try_input(input);
        ++tried;
    }
    std::printf("%zu tried, %zu of them accepted and run\n", tried, accepted);
    return 0;
}
#endif
