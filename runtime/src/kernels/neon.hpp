// What is compiled for NEON with dot products of bytes (Armv8.2).
#pragma once

#include "plans.hpp"

namespace vitquant::kernels::neon {

size_t linear_scratch(const LinearPlan&);
void linear(const LinearPlan&, const LinearRun&);
void layernorm(const LayerNormPlan&, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride);
size_t attention_scratch(const AttentionPlan&);
void attention(const AttentionPlan&, const AttentionRun&);

}  // namespace vitquant::kernels::neon
