// What the steps of attention have in common, one by one or fused.
#pragma once

#include "ops/constants.hpp"

namespace vitquant {

kernels::Softmax form_of(const Operation& softmax);

// Equal runs of neighbouring queries, and of keys: those of one window meet each other only.
struct Windows {
    size_t count, queries, keys;  // queries and keys of one

    Windows(int64_t windows, int64_t all_queries, int64_t all_keys)
        : count(size_t(windows)), queries(size_t(all_queries / windows)), keys(size_t(all_keys / windows)) {}

    size_t of(size_t query) const { return query / queries; }
};

}  // namespace vitquant
