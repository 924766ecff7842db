// The tables of functions, and whether this machine has the instructions for them.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "avx2.hpp"
#include "avx512vnni.hpp"

namespace vitquant::kernels {
namespace {

const Kernels table = {
    "portable",
    [](const LinearSpec& spec) { return make_linear(spec, Layout::portable); },
    plain::linear_scratch,
    plain::linear,
    [](const LayerNormSpec& spec) { return make_layernorm(spec, Layout::portable); },
    plain::layernorm,
    [](const AttentionSpec& spec) { return make_attention(spec, Layout::portable); },
    plain::attention_scratch,
    plain::attention,
    make_add,
    plain::add,
    make_requantize,
    plain::requantize,
    make_lookup,
    plain::lookup,
    plain::patches,
};

#if defined(__x86_64__)
const Kernels table_avx2 = {
    "avx2",
    [](const LinearSpec& spec) { return make_linear(spec, Layout::avx2); },
    avx::linear_scratch,
    avx::linear,
    [](const LayerNormSpec& spec) { return make_layernorm(spec, Layout::avx2); },
    avx::layernorm,
    [](const AttentionSpec& spec) { return make_attention(spec, Layout::avx2); },
    avx::attention_scratch,
    avx::attention,
    make_add,
    plain::add,
    make_requantize,
    plain::requantize,
    make_lookup,
    plain::lookup,
    plain::patches,
};

const Kernels table_avxvnni = {
    "avxvnni",
    [](const LinearSpec& spec) { return make_linear(spec, Layout::avxvnni); },
    avx::linear_scratch,
    vnni256::linear,
    [](const LayerNormSpec& spec) { return make_layernorm(spec, Layout::avx2); },
    avx::layernorm,
    [](const AttentionSpec& spec) { return make_attention(spec, Layout::avx2); },
    avx::attention_scratch,
    avx::attention,
    make_add,
    plain::add,
    make_requantize,
    plain::requantize,
    make_lookup,
    plain::lookup,
    plain::patches,
};

const Kernels table_avx512vnni = {
    "avx512vnni",
    [](const LinearSpec& spec) { return make_linear(spec, Layout::avx512vnni); },
    vnni512::linear_scratch,
    vnni512::linear,
    [](const LayerNormSpec& spec) { return make_layernorm(spec, Layout::avx512vnni); },
    vnni512::layernorm,
    [](const AttentionSpec& spec) { return make_attention(spec, Layout::avx512vnni); },
    vnni512::attention_scratch,
    vnni512::attention,
    make_add,
    plain::add,
    make_requantize,
    plain::requantize,
    make_lookup,
    plain::lookup,
    plain::patches,
};

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
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
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

}  // namespace vitquant::kernels
