// The tables of functions, and whether this machine has the instructions for them.
#include "plans.hpp"

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

}  // namespace

const Kernels* portable() { return &table; }

const Kernels* avx2() { return nullptr; }

const Kernels* avx512vnni() { return nullptr; }

}  // namespace vitquant::kernels
