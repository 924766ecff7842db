// The tables of functions, and whether this machine has the instructions for them.
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "avx2.hpp"
#include "avx512.hpp"
#include "neon.hpp"

namespace vitquant::kernels {
namespace {

/// The functions of a table that run plans.
struct Pieces {
    decltype(Kernels::linear_scratch) linear_scratch;
    decltype(Kernels::linear) linear;
    decltype(Kernels::layernorm) layernorm;
    decltype(Kernels::attention_scratch) attention_scratch;
    decltype(Kernels::attention) attention;
};

/// A table whose linear layers are packed for one layout, and everything else for another.
template <Layout linear, Layout rest>
constexpr Kernels table_of(const char* name, const Pieces& pieces) {
    return {
        name,
        [](const LinearSpec& spec) { return make_linear(spec, linear); },
        pieces.linear_scratch,
        pieces.linear,
        [](const LayerNormSpec& spec) { return make_layernorm(spec, rest); },
        pieces.layernorm,
        [](const AttentionSpec& spec) { return make_attention(spec, rest); },
        pieces.attention_scratch,
        pieces.attention,
    };
}

constexpr Kernels table = table_of<Layout::portable, Layout::portable>(
    "portable",
    {scalar::linear_scratch, scalar::linear, scalar::layernorm, scalar::attention_scratch, scalar::attention});

#if defined(__x86_64__)
constexpr Kernels table_avx2 = table_of<Layout::avx2, Layout::avx2>(
    "avx2", {avx::linear_scratch, avx::linear, avx::layernorm, avx::attention_scratch, avx::attention});

constexpr Kernels table_avxvnni = table_of<Layout::avxvnni, Layout::avx2>(
    "avxvnni", {avx::linear_scratch, vnni256::linear, avx::layernorm, avx::attention_scratch, avx::attention});

constexpr Kernels table_avx512vnni = table_of<Layout::avx512vnni, Layout::avx512vnni>(
    "avx512vnni", {vnni512::linear_scratch, vnni512::linear, vnni512::layernorm, vnni512::attention_scratch,
                   vnni512::attention});

constexpr Kernels table_avx512vbmi = table_of<Layout::avx512vnni, Layout::avx512vnni>(
    "avx512vbmi", {vbmi512::linear_scratch, vbmi512::linear, vnni512::layernorm, vbmi512::attention_scratch,
                   vbmi512::attention});

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
constexpr Kernels table_neondot = table_of<Layout::neondot, Layout::neondot>(
    "neondot", {neon::linear_scratch, neon::linear, neon::layernorm, neon::attention_scratch, neon::attention});

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

const Kernels* portable() { return &table; }

const Kernels* avx2() {
#if defined(__x86_64__)
    if (has_avx2()) return &table_avx2;
#endif
    return nullptr;
}

const Kernels* avxvnni() {
#if defined(__x86_64__)
    if (has_avxvnni()) return &table_avxvnni;
#endif
    return nullptr;
}

const Kernels* avx512vnni() {
#if defined(__x86_64__)
    if (has_avx512vnni()) return &table_avx512vnni;
#endif
    return nullptr;
}

const Kernels* avx512vbmi() {
#if defined(__x86_64__)
    if (has_avx512vbmi()) return &table_avx512vbmi;
#endif
    return nullptr;
}

const Kernels* neondot() {
#if defined(__aarch64__)
    if (has_neondot()) return &table_neondot;
#endif
    return nullptr;
}

}  // namespace vitquant::kernels
