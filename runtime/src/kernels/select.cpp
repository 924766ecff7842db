#include <cstring>

#include "kernels.hpp"

namespace vitquant::kernels {

const Kernels* select(const char* forced) {
    const Kernels* (*const tables[])() = {avx512vbmi, avx512vnni, avxvnni, avx2, neondot, portable};
    for (const auto table : tables) {
        const Kernels* found = table();
        if (found == nullptr) continue;
        if (forced == nullptr || *forced == '\0' || std::strcmp(forced, found->name) == 0) return found;
    }
    return nullptr;
}

}  // namespace vitquant::kernels
