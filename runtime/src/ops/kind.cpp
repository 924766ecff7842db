#include "ops/kind.hpp"

namespace vitquant {

const OperationKind* find_kind(std::string_view name) {
    for (const auto family :
         {attention_kinds, elementwise_kinds, layernorm_kinds, linear_kinds, rotary_kinds, token_kinds})
        for (const OperationKind& kind : family())
            if (kind.name == name) return &kind;
    return nullptr;
}

}  // namespace vitquant
