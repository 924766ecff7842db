#include <cmath>

#include "check.hpp"

namespace test {
namespace {

int64_t centred_limit(const OwnedGrid& g) {
    int64_t limit = 1;
    for (const int64_t zero : g.zero) limit = std::max(limit, std::max(zero - g.low, g.high - zero));
    return limit;
}

int bits_of(int64_t x) {
    int bits = 0;
    for (; x > 0; x >>= 1) ++bits;
    return bits;
}

}  // namespace

void attention(const Kernels& kernels, uint64_t seed, bool large) {
    Random r(seed);
    const auto number = [&] {
        return static_cast<size_t>(large ? r.in(400, 1370) : r.chance(20) ? r.in(60, 300) : r.in(1, 60));
    };
    const size_t keys = number(), queries = r.chance(60) ? keys : number();
    const size_t heads = static_cast<size_t>(r.in(1, 3)), width = static_cast<size_t>(large          ? 64
                                                                                      : r.chance(30) ? 64
                                                                                                     : r.in(1, 100));
    const size_t channels = heads * width;
    const bool bytes = large || r.chance(80);
    const auto type = [&] {
        return bytes ? r.of({Type::i8, Type::i8, Type::u8}) : r.of({Type::i8, Type::u8, Type::i16});
    };
    const bool plain = r.chance(50);
    OwnedGrid q(r, type(), channels, plain), k(r, type(), channels, plain), v(r, type(), channels, plain);
    for (OwnedGrid* g : {&q, &k, &v}) {
        if (g->type == Type::i16)
            *g = OwnedGrid(r, Type::i16, channels, true), g->low = -500, g->high = 400, g->zero = {7},
            g->run = channels;
    }
    const Softmax softmax = bytes && r.chance(80)
                                ? r.of({Softmax::row, Softmax::diffusion})
                                : r.of({Softmax::row, Softmax::diffusion, Softmax::uniform, Softmax::log2});
    const bool by_row = softmax == Softmax::row || softmax == Softmax::diffusion;
    OwnedGrid scores(r, bytes ? r.of({Type::u8, Type::i8}) : r.of({Type::u8, Type::i8, Type::i16}), heads,
                     r.chance(30));
    const double reach =
        static_cast<double>(width) * static_cast<double>(centred_limit(q)) * static_cast<double>(centred_limit(k));
    const OwnedRescale scores_rescale(r, heads, reach, r.of({100.0, 1000.0, 5000.0}));
    OwnedGrid weights(r, softmax == Softmax::log2 ? Type::i32 : Type::u8, heads, softmax != Softmax::uniform);
    if (softmax != Softmax::uniform)
        weights.low = 0, weights.high = by_row ? 255 : 32768, weights.zero = {0}, weights.run = heads;
    const OwnedRescale weights_rescale(r, heads, 1 << 30, 300.0);
    const bool normalize = by_row && r.chance(95);
    const int64_t v_limit = centred_limit(v);
    const int wide = bits_of(v_limit),
              fraction_bits = normalize ? static_cast<int>(r.chance(70) ? 30 - wide : r.in(0, 30 - wide)) : 0;
    const int reciprocal_bits =
        normalize ? static_cast<int>(r.chance(70) ? 52 - wide : r.in(fraction_bits, 52 - wide)) : 0;
    const bool many_levels = by_row && keys <= 60 && r.chance(20);
    if (many_levels) weights.type = Type::i32, weights.high = 65535;
    int64_t largest = !by_row ? 32767 : many_levels ? 65535 : 255;
    if (softmax == Softmax::diffusion) largest = r.chance(80) ? largest << 8 : r.in(128, largest << 8);
    const auto distances = static_cast<size_t>(scores.high - scores.low + 1);
    const size_t table_count = r.chance(50) ? heads : 1;
    std::vector<int32_t> table;
    const double slope = r.of({0.01, 0.1, 0.0, 2.0});
    const bool noisy = softmax == Softmax::diffusion && r.chance(30);  // not falling, and with all fractions
    for (size_t h = 0; h < table_count; ++h) {
        for (size_t d = 0; d < distances; ++d)
            table.push_back(noisy && d > 0
                                ? static_cast<int32_t>(r.extreme(0, largest))
                                : static_cast<int32_t>(std::lround(static_cast<double>(largest) *
                                                                   std::exp(-slope * static_cast<double>(d)))));
    }
    const OwnedGrid out(r, bytes ? r.of({Type::i8, Type::u8}) : r.of({Type::i8, Type::i16}), channels, r.chance(50));
    const OwnedRescale rescale(r, channels, normalize ? std::ldexp(static_cast<double>(v_limit), fraction_bits) : 1e8,
                               r.of({200.0, 2000.0}));
    const int last = static_cast<int>(r.in(0, 15));

    // Addends of some levels, or large enough that scores are clamped; a file may hold any up to 2^30.
    const auto some_of = [&](size_t count) { return r.chance(50) ? count : size_t{1}; };
    const size_t added_heads = some_of(heads), added_rows = some_of(queries), added_keys = r.chance(80) ? keys : 1;
    const int64_t addend = r.chance(40) ? 0 : r.of({int64_t{50}, int64_t{50}, int64_t{2000}, int64_t{1} << 30});
    std::vector<int32_t> addends(added_heads * added_rows * added_keys);
    for (int32_t& x : addends) x = static_cast<int32_t>(r.extreme(-addend, addend));

    AttentionSpec spec{};
    spec.keys = keys, spec.channels = channels, spec.heads = heads;
    spec.q = q.view(), spec.k = k.view(), spec.v = v.view();
    spec.scores_rescale = scores_rescale.view(), spec.scores = scores.view();
    spec.score_table = {addends.data(), added_heads, added_rows, added_keys};
    spec.softmax = softmax, spec.table = table.data(), spec.table_count = table_count;
    spec.weights_rescale = weights_rescale.view(), spec.last = last, spec.weights = weights.view();
    spec.normalize = normalize, spec.reciprocal_bits = reciprocal_bits, spec.fraction_bits = fraction_bits;
    spec.rescale = rescale.view(), spec.out = out.view();
    const auto plan = kernels.make_attention(spec);

    const size_t stride = 3 * channels + static_cast<size_t>(r.in(0, 9)),
                 out_stride = channels + static_cast<size_t>(r.in(0, 9));
    Codes qs(q.type, (queries - 1) * stride + channels), ks(k.type, (keys - 1) * stride + channels),
        vs(v.type, (keys - 1) * stride + channels);
    qs.randomize(r, q.low, q.high), ks.randomize(r, k.low, k.high), vs.randomize(r, v.low, v.high);
    Codes result(out.type, (queries - 1) * out_stride + channels, untouched);
    Scratch scratch(kernels.attention_scratch(*plan));
    const size_t some = static_cast<size_t>(r.in(0, static_cast<int64_t>(queries))),
                 split = static_cast<size_t>(r.in(0, static_cast<int64_t>(heads)));
    const auto run = [&](size_t first_head, size_t last_head, size_t first_row, size_t last_row) {
        kernels.attention(*plan, {qs.data(), ks.data(), vs.data(), stride, stride, stride, result.data(), out_stride,
                                  first_head, last_head, first_row, last_row, scratch.memory});
    };
    run(0, split, 0, queries), run(split, heads, 0, some), run(split, heads, some, queries);

    std::vector<int64_t> want(queries * channels), p(keys);
    const int64_t one = 1;
    for (size_t h = 0; h < heads; ++h) {
        for (size_t row = 0; row < queries; ++row) {
            if (large && r.chance(80) && row > 0) {
                for (size_t d = 0; d < width; ++d)
                    want[row * channels + h * width + d] = result.get(row * out_stride + h * width + d);
                continue;  // one row in five is enough where there are many
            }
            int64_t maximum = scores.low, sum = 0;
            for (size_t i = 0; i < keys; ++i) {
                int64_t acc = 0;
                for (size_t c = h * width; c < (h + 1) * width; ++c)
                    acc += (qs.get(row * stride + c) - q.zero_of(c)) * (ks.get(i * stride + c) - k.zero_of(c));
                const size_t at = h / (heads / added_heads) * added_rows + row % added_rows;
                const int64_t added = addends[at * added_keys + (added_keys > 1 ? i : 0)];
                p[i] = clamp(scores_rescale(acc, h) + scores.zero_of(h) + added, scores.low, scores.high);
                maximum = std::max(maximum, p[i]);
            }
            const int32_t* exponential = table.data() + h / (heads / table_count) * distances;
            for (size_t i = 0; i < keys; ++i) sum += p[i] = exponential[maximum - p[i]];
            if (softmax == Softmax::diffusion) {
                int64_t e = 0, before = 0;
                for (size_t i = 0; i < keys; ++i) {
                    e += p[i];
                    sum = (e + 128) / 256, p[i] = sum - before, before = sum;
                }
            }
            for (size_t i = 0; i < keys; ++i) {
                if (softmax == Softmax::uniform) {
                    const int64_t share = (p[i] * ((one << 50) / sum)) >> 20;
                    p[i] = clamp(weights_rescale(share, h) + weights.zero_of(h), weights.low, weights.high) -
                           weights.zero_of(h);
                } else if (softmax == Softmax::log2) {
                    int exponent = 0;
                    for (int e = 0; e <= last; ++e)
                        exponent +=
                            (static_cast<__int128>(p[i]) * p[i] << (2 * e + 1)) < static_cast<__int128>(sum) * sum;
                    p[i] = exponent > last ? 0 : one << (15 - exponent);
                }
            }
            for (size_t c = h * width; c < (h + 1) * width; ++c) {
                int64_t acc = 0;
                for (size_t i = 0; i < keys; ++i) acc += p[i] * (vs.get(i * stride + c) - v.zero_of(c));
                if (normalize)
                    acc = static_cast<int64_t>((static_cast<__int128>(acc) * ((one << reciprocal_bits) / sum)) >>
                                               (reciprocal_bits - fraction_bits));
                want[row * channels + c] = clamp(rescale(acc, c) + out.zero_of(c), out.low, out.high);
            }
        }
    }
    expect_rows(kernels, "attention", seed, result, queries, out_stride, 0, channels,
                [&](size_t row, size_t c) { return want[row * channels + c]; });
}

}  // namespace test
