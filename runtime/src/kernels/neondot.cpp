#if defined(__aarch64__)

#include "vectors_neon.hpp"

namespace vitquant::kernels {

const Functions neondot_functions = {linear_scratch<Neon>,    linear<Neon>,   layernorm<Neon>, requantize<Neon>,
                                     attention_scratch<Neon>, attention<Neon>};

}  // namespace vitquant::kernels

#endif
