// Every table of kernels that this machine can run, against plain loops in wide integers.
//
//   kernel_tests [cases] [first seed]
//
// Where there is AVX-512 but no AVX-VNNI, a build with -DVITQUANT_AVXVNNI_BY_AVX512=ON tests the kernels of the latter
// too.
#include <cstring>

#include "check.hpp"

int main(int count, char** arguments) {
    using namespace test;
    const uint64_t cases = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1000;
    const uint64_t first = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
    for (const Kernels* kernels : {portable(), avx2(), avxvnni(), avx512vnni(), avx512vbmi(), neondot()}) {
        if (kernels == nullptr) continue;
        if (select(kernels->name) != kernels) {
            std::printf("FAIL %s cannot be selected by its name\n", kernels->name);
            return 1;
        }
        linear_ties(*kernels);
        for (uint64_t seed = first; seed < first + cases; ++seed) {
            linear(*kernels, seed);
            layernorm(*kernels, seed);
            requantize(*kernels, seed);
            attention(*kernels, seed, false);
            if (seed % 200 == 0) attention(*kernels, seed, true);
        }
        std::printf("ok %s, %llu cases of each kernel\n", kernels->name, static_cast<unsigned long long>(cases));
    }
    for (uint64_t seed = first; seed < first + cases; ++seed) operations(seed);
    std::printf("ok operations without kernels, %llu cases of each\n", static_cast<unsigned long long>(cases));
    if (select("none such") != nullptr) return std::printf("FAIL an unknown table was selected\n"), 1;
    return 0;
}
