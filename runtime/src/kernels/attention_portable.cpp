#include "attention_rows.hpp"

namespace vitquant::kernels::scalar {
namespace {

// Scratch of one head: K and V less their zero points, and one row of everything else.
struct Head {
    int32_t *k, *v;     // [keys, width]
    int32_t *q, *sums;  // [width]
    int32_t* weights;   // [keys], at first the scores
};

void centre(const void* x, Type type, size_t at, const int32_t* zero, size_t width, int32_t* to) {
    for (size_t d = 0; d < width; ++d) to[d] = load(x, type, at + d) - zero[d];
}

void run_row(const AttentionPlan& plan, const AttentionRun& run, const Head& scratch, size_t head, size_t row) {
    const size_t width = plan.channels / plan.heads, first = head * width;
    centre(run.q, plan.q_type, row * run.q_stride + first, plan.zero_q + first, width, scratch.q);
    score_row(plan.scores, plan.addends, head, row, scratch.q, scratch.k, plan.keys, width, scratch.weights);
    const int64_t sum = softmax_row(plan.softmax, head, plan.keys, scratch.weights);
    for (size_t t = 0; t < plan.keys; ++t) scratch.weights[t] -= plan.zero_weights[head];
    weigh_row(scratch.weights, scratch.v, plan.keys, width, scratch.sums);
    // Only weights of zero point 0 are divided, in the forms whose sum this is.
    const int64_t reciprocal = reciprocal_of(plan.division, sum);
    for (size_t d = 0; d < width; ++d) {
        store(run.out, plan.out.type, row * run.out_stride + first + d,
              to_code(plan.out, divided(plan.division, scratch.sums[d], reciprocal), first + d));
    }
}

}  // namespace

size_t attention_scratch(const AttentionPlan& plan) {
    const size_t width = plan.channels / plan.heads;
    return (2 * plan.keys * width + 2 * width + plan.keys) * sizeof(int32_t);
}

void attention(const AttentionPlan& plan, const AttentionRun& run) {
    const size_t width = plan.channels / plan.heads;
    Head scratch{};
    scratch.k = static_cast<int32_t*>(run.scratch);
    scratch.v = scratch.k + plan.keys * width;
    scratch.q = scratch.v + plan.keys * width;
    scratch.sums = scratch.q + width;
    scratch.weights = scratch.sums + width;
    for (size_t head = run.first_head; head < run.last_head; ++head) {
        const size_t first = head * width;
        for (size_t i = 0; i < plan.keys; ++i) {
            centre(run.k, plan.k_type, i * run.k_stride + first, plan.zero_k + first, width, scratch.k + i * width);
            centre(run.v, plan.v_type, i * run.v_stride + first, plan.zero_v + first, width, scratch.v + i * width);
        }
        for (size_t row = run.first_row; row < run.last_row; ++row) run_row(plan, run, scratch, head, row);
    }
}

}  // namespace vitquant::kernels::scalar
