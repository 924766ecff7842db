#if defined(__x86_64__)

#include "vectors_avx2.hpp"

namespace vitquant::kernels {

const Functions avx2_functions = {linear_scratch<Avx2>,    linear<Avx2>,   layernorm<Avx2>, requantize<Avx2>,
                                  attention_scratch<Avx2>, attention<Avx2>};

}  // namespace vitquant::kernels

#endif
