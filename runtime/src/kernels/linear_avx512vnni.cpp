#if defined(__x86_64__)

#include "linear_512.hpp"
#include "avx512.hpp"

namespace vitquant::kernels::vnni512 {

size_t linear_scratch(const LinearPlan& plan) { return linear_scratch_512(plan); }

void linear(const LinearPlan& plan, const LinearRun& run) { linear_512(plan, run); }

}  // namespace vitquant::kernels::vnni512

#endif
