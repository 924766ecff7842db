#if defined(__x86_64__)

#include "attention_512.hpp"
#include "layernorm_512.hpp"
#include "linear_512.hpp"
#include "requantize_512.hpp"

namespace vitquant::kernels {

const Functions avx512vbmi_functions = {linear_scratch_512,    linear_512,   layernorm_512, requantize_512,
                                        attention_scratch_512, attention_512};

}  // namespace vitquant::kernels

#endif
