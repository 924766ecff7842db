#if defined(__x86_64__)

#include "vectors_avx2.hpp"

namespace vitquant::kernels {

const Functions avxvnni_functions = {linear_scratch<AvxVnni>,    linear<AvxVnni>,
                                     layernorm<AvxVnni>,         requantize<AvxVnni>,
                                     attention_scratch<AvxVnni>, attention<AvxVnni>};

}  // namespace vitquant::kernels

#endif
