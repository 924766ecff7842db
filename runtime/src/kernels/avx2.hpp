// What is compiled for AVX2, and for AVX-VNNI, which adds products of bytes.
#pragma once

#include "plans.hpp"

namespace vitquant::kernels::avx {

size_t linear_scratch(const LinearPlan&);
void linear(const LinearPlan&, const LinearRun&);
void layernorm(const LayerNormPlan&, size_t rows, const void* x, size_t x_stride, void* out, size_t out_stride);
size_t attention_scratch(const AttentionPlan&);
void attention(const AttentionPlan&, const AttentionRun&);

}  // namespace vitquant::kernels::avx

namespace vitquant::kernels::vnni256 {

void linear(const LinearPlan&, const LinearRun&);

}  // namespace vitquant::kernels::vnni256
