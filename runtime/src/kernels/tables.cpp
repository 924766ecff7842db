// The tables of functions, and whether this machine has the instructions for them.
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <cstring>

#include "plans.hpp"

namespace vitquant::kernels {
namespace {

// A table whose linear layers are packed for one layout, and everything else for another.
template <Layout linear, Layout rest>
Kernels table_of(const char* name, const Functions& functions) {
    return {
        name,
        [](const LinearSpec& spec) { return make_linear(spec, linear); },
        functions.linear_scratch,
        functions.linear,
        [](const LayerNormSpec& spec) { return make_layernorm(spec, rest); },
        functions.layernorm,
        [](const RequantizeSpec& spec) { return make_requantize(spec, rest); },
        functions.requantize,
        [](const AttentionSpec& spec) { return make_attention(spec, rest); },
        functions.attention_scratch,
        functions.attention,
    };
}

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avxvnni() {
#if defined(VITQUANT_AVXVNNI_BY_AVX512)
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
#endif
}

bool has_avx512vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

bool has_avx512vbmi() { return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }
#elif defined(__aarch64__)
bool has_neondot() {
#if defined(__linux__)
    constexpr unsigned long dot_products = 1UL << 20;  // HWCAP_ASIMDDP, which older headers lack
    return (getauxval(AT_HWCAP) & dot_products) != 0;
#elif defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found != 0;
#else
    return false;
#endif
}
#endif

}  // namespace

const Kernels* portable() {
    static const Kernels table = table_of<Layout::portable, Layout::portable>(
        "portable", {scalar::linear_scratch, scalar::linear, scalar::layernorm, scalar::requantize,
                     scalar::attention_scratch, scalar::attention});
    return &table;
}

const Kernels* avx2() {
#if defined(__x86_64__)
    static const Kernels table = table_of<Layout::avx2, Layout::avx2>("avx2", avx2_functions);
    if (has_avx2()) return &table;
#endif
    return nullptr;
}

const Kernels* avxvnni() {
#if defined(__x86_64__)
    static const Kernels table = table_of<Layout::avxvnni, Layout::avx2>("avxvnni", avxvnni_functions);
    if (has_avxvnni()) return &table;
#endif
    return nullptr;
}

const Kernels* avx512vnni() {
#if defined(__x86_64__)
    static const Kernels table = table_of<Layout::avx512vnni, Layout::avx512vnni>("avx512vnni", avx512vnni_functions);
    if (has_avx512vnni()) return &table;
#endif
    return nullptr;
}

const Kernels* avx512vbmi() {
#if defined(__x86_64__)
    static const Kernels table = table_of<Layout::avx512vnni, Layout::avx512vnni>("avx512vbmi", avx512vbmi_functions);
    if (has_avx512vbmi()) return &table;
#endif
    return nullptr;
}

const Kernels* neondot() {
#if defined(__aarch64__)
    static const Kernels table = table_of<Layout::neondot, Layout::neondot>("neondot", neondot_functions);
    if (has_neondot()) return &table;
#endif
    return nullptr;
}

const Kernels* select(const char* forced) {
    const Kernels* (*const tables[])() = {avx512vbmi, avx512vnni, avxvnni, avx2, neondot, portable};
    for (const auto table : tables) {
        const Kernels* found = table();
        if (found == nullptr) continue;
        if (forced == nullptr || *forced == '\0' || std::strcmp(forced, found->name) == 0) return found;
    }
    return nullptr;
}

}  // namespace vitquant::kernels
