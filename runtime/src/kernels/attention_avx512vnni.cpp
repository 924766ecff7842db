#if defined(__x86_64__)

#include "attention_512.hpp"
#include "avx512.hpp"

namespace vitquant::kernels::vnni512 {

size_t attention_scratch(const AttentionPlan& plan) { return attention_scratch_512(plan); }

void attention(const AttentionPlan& plan, const AttentionRun& run) { attention_512(plan, run); }

}  // namespace vitquant::kernels::vnni512

#endif
