#include "scalar.hpp"

namespace vitquant::kernels::plain {
namespace {

constexpr int reciprocal_bits = 50, share_bits = 30;  // of the shares of exponentials
constexpr int log2_max = 15;

/// Scratch of one head: K and V less their zero points, and one row of everything else.
struct Head {
    int32_t *k, *v;   // [tokens, width]
    int32_t* q;       // [width]
    int32_t* scores;  // [tokens], then the weights less their zero point
};

void centre(const void* x, Type type, size_t at, const int32_t* zero, size_t width, int32_t* to) {
    for (size_t d = 0; d < width; ++d) to[d] = load(x, type, at + d) - zero[d];
}

int32_t product(const int32_t* a, const int32_t* b, size_t count) {
    int32_t sum = 0;
    for (size_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

/// Exponentials of the distances from the maximum, in place of the scores; their sum.
int64_t exponentials(const int32_t* table, size_t tokens, int32_t* scores) {
    int32_t largest = scores[0];
    for (size_t i = 1; i < tokens; ++i) largest = scores[i] > largest ? scores[i] : largest;
    int64_t sum = 0;
    for (size_t i = 0; i < tokens; ++i) {
        scores[i] = table[largest - scores[i]];
        sum += scores[i];
    }
    return sum;
}

void uniform(const AttentionPlan& plan, size_t head, int64_t sum, int32_t* e) {
    const int64_t reciprocal = (int64_t{1} << reciprocal_bits) / sum;
    for (size_t i = 0; i < plan.tokens; ++i) {
        const int64_t share = (e[i] * reciprocal) >> (reciprocal_bits - share_bits);
        e[i] = static_cast<int32_t>(to_code(plan.weights, share, head) - plan.zero_weights[head]);
    }
}

void powers_of_two(const AttentionPlan& plan, int64_t sum, int32_t* e) {
    for (size_t i = 0; i < plan.tokens; ++i) {
        const int64_t square = int64_t{e[i]} * e[i];
        int q = 0;
        for (int k = 0; k <= plan.last; ++k) q += (square << (2 * k + 1)) < sum * sum;
        e[i] = q > plan.last ? 0 : 1 << (log2_max - q);
    }
}

void run_row(const AttentionPlan& plan, const AttentionRun& run, const Head& scratch, size_t head, size_t row) {
    const size_t width = plan.channels / plan.heads, tokens = plan.tokens, first = head * width;
    int32_t* p = scratch.scores;
    centre(run.q, plan.q_type, row * run.q_stride + first, plan.zero_q + first, width, scratch.q);
    for (size_t i = 0; i < tokens; ++i) {
        p[i] = static_cast<int32_t>(to_code(plan.scores, product(scratch.q, scratch.k + i * width, width), head));
    }
    const int64_t sum = exponentials(plan.table + head * plan.distances, tokens, p);
    if (plan.softmax == Softmax::uniform) uniform(plan, head, sum, p);
    if (plan.softmax == Softmax::log2) powers_of_two(plan, sum, p);
    // Only what softmax_row makes, with zero point 0, is normalised: then the weights are the exponentials.
    const int64_t reciprocal = plan.normalize ? (int64_t{1} << plan.reciprocal_bits) / sum : 0;
    for (size_t d = 0; d < width; ++d) {
        int32_t mixed = 0;
        for (size_t i = 0; i < tokens; ++i) mixed += p[i] * scratch.v[i * width + d];
        int64_t y = mixed;
        if (plan.normalize) y = (y * reciprocal) >> (plan.reciprocal_bits - plan.fraction_bits);
        store(run.out, plan.out.type, row * run.out_stride + first + d, to_code(plan.out, y, first + d));
    }
}

}  // namespace

size_t attention_scratch(const AttentionPlan& plan) {
    const size_t width = plan.channels / plan.heads;
    return (2 * plan.tokens * width + width + plan.tokens) * sizeof(int32_t);
}

void attention(const AttentionPlan& plan, const AttentionRun& run) {
    const size_t width = plan.channels / plan.heads;
    Head scratch{};
    scratch.k = static_cast<int32_t*>(run.scratch);
    scratch.v = scratch.k + plan.tokens * width;
    scratch.q = scratch.v + plan.tokens * width;
    scratch.scores = scratch.q + width;
    for (size_t head = run.first_head; head < run.last_head; ++head) {
        const size_t first = head * width;
        for (size_t i = 0; i < plan.tokens; ++i) {
            centre(run.k, plan.k_type, i * run.k_stride + first, plan.zero_k + first, width, scratch.k + i * width);
            centre(run.v, plan.v_type, i * run.v_stride + first, plan.zero_v + first, width, scratch.v + i * width);
        }
        for (size_t row = run.first_row; row < run.last_row; ++row) run_row(plan, run, scratch, head, row);
    }
}

}  // namespace vitquant::kernels::plain
