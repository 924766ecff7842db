// What is compiled for AVX-512 with VNNI, and with VBMI too, whose permutations of bytes make look-ups shorter.
#pragma once

#include "plans.hpp"

namespace vitquant::kernels::vnni512 {

size_t linear_scratch(const LinearPlan&);
void linear(const LinearPlan&, const LinearRun&);
void layernorm(const LayerNormPlan&, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride);
size_t attention_scratch(const AttentionPlan&);
void attention(const AttentionPlan&, const AttentionRun&);

}  // namespace vitquant::kernels::vnni512

namespace vitquant::kernels::vbmi512 {

size_t linear_scratch(const LinearPlan&);
void linear(const LinearPlan&, const LinearRun&);
size_t attention_scratch(const AttentionPlan&);
void attention(const AttentionPlan&, const AttentionRun&);

}  // namespace vitquant::kernels::vbmi512
