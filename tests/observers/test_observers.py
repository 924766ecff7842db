import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitquant.errors import ConfigError, LifecycleError, ModelError, NumericsError
from vitquant.numerics.affine import QuantParams, code_range, fake_quantize, params_from_range
from vitquant.numerics.clip import full_range
from vitquant.observers import (
    OBSERVERS,
    ChannelLayout,
    KLObserver,
    MinmaxObserver,
    Observer,
    OmseObserver,
    PercentileObserver,
    make_observer,
)
from vitquant.observers.histogram import Histogram, thinning_stride
from vitquant.observers.threshold import HistogramObserver

SAMPLING = ["KLObserver", "OmseObserver"]
LAYOUTS = {"layer_wise": ChannelLayout(None), "channel_wise": ChannelLayout(-1), "head_wise": ChannelLayout(-1, 4)}


def make(name: str, layout: ChannelLayout, **settings: Any) -> Observer:
    return make_observer(
        name, layout, **{"percentile_alpha": 0.999, "percentile_sigma": 0.1, "kl_bins": 256} | settings
    )


def seen(name: str, layout: ChannelLayout, batches: Iterable[Any]) -> Observer:
    observer = make(name, layout)
    for batch in batches:
        observer.observe(torch.as_tensor(batch))
    return observer


def histogram_of(observer: Observer) -> Histogram:
    assert isinstance(observer, HistogramObserver)
    return observer.histogram


def ranges(observer: Observer) -> torch.Tensor:
    kinds = [(bits, signed) for bits in (3, 8) for signed in (True, False)]
    return torch.stack([end for bits, signed in kinds for end in observer.range(bits=bits, signed=signed)])


def activations(seed: int = 0, images: int = 4) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(images, 9, 8) * torch.logspace(-1, 1, 8) + torch.linspace(-1, 2, 8)


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_observed(name: str) -> None:
    observer = make(name, ChannelLayout(None))
    observer.observe(torch.empty(0, 3))
    assert not observer.observed
    with pytest.raises(LifecycleError, match="nothing was observed"):
        observer.range(bits=8, signed=True)


def test_minmax_by_hand() -> None:
    x = torch.tensor([[[1.0, -2.0], [3.0, 5.0]]])
    observer = MinmaxObserver(ChannelLayout(-1))
    observer.observe(x)
    observer.observe(x / -2)
    low, high = observer.range(bits=8, signed=True)
    assert (low.tolist(), high.tolist()) == ([-1.5, -2.5], [3.0, 5.0])
    assert low.dtype == torch.float64


def test_percentile_average_by_hand() -> None:
    observer = PercentileObserver(ChannelLayout(None), 1.0, 0.25)
    for top in (4.0, 8.0, 16.0):
        observer.observe(torch.tensor([0.0, top]))
    weights = [0.25 * 0.75**2, 0.25 * 0.75, 0.25]
    expected = sum(w * v for w, v in zip(weights, (4, 8, 16), strict=True)) / sum(weights)
    assert observer.range(bits=8, signed=False)[1].item() == pytest.approx(expected)


@pytest.mark.parametrize(("sigma", "expected"), [(1e-9, 3.0), (1.0, 5.0)])
def test_percentile_sigma_runs_from_the_mean_to_the_last_batch(sigma: float, expected: float) -> None:
    observer = PercentileObserver(ChannelLayout(None), 1.0, sigma)
    for top in (1.0, 3.0, 5.0):
        observer.observe(torch.tensor([top]))
    assert observer.range(bits=8, signed=True)[1].item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", LAYOUTS)
def test_percentile_of_one_batch_equals_numpy(mode: str) -> None:
    x = activations(images=30)
    layout = LAYOUTS[mode]
    low, high = seen("PercentileObserver", layout, [x]).range(bits=8, signed=True)
    flat = layout.split(x).transpose(0, 1).flatten(1).double().numpy()
    np.testing.assert_allclose(high, np.quantile(flat, 0.999, axis=1), rtol=1e-12)
    np.testing.assert_allclose(low, np.quantile(flat, 1 - 0.999, axis=1), rtol=1e-12)


@settings(max_examples=30)
@given(
    x=hnp.arrays(np.float32, (6, 3, 4), elements=st.floats(-(2.0**40), 2.0**40, width=32)),
    cuts=st.sets(st.integers(1, 5)),
    mode=st.sampled_from(sorted(LAYOUTS)),
    name=st.sampled_from(["MinmaxObserver", "KLObserver", "OmseObserver"]),
)
def test_any_split_into_batches_gives_the_same(x: np.ndarray, cuts: list[int], mode: str, name: str) -> None:
    streamed = seen(name, LAYOUTS[mode], np.split(x, sorted(cuts)))
    assert torch.equal(ranges(streamed), ranges(seen(name, LAYOUTS[mode], [x])))


@settings(max_examples=30)
@given(
    x=hnp.arrays(np.float32, (6, 3, 4), elements=st.floats(-100, 100, width=32)),
    cut=st.integers(0, 6),
    mode=st.sampled_from(sorted(LAYOUTS)),
    name=st.sampled_from(sorted(OBSERVERS)),
)
def test_merging_is_having_seen_both(x: np.ndarray, cut: int, mode: str, name: str) -> None:
    layout = LAYOUTS[mode]
    first, second = seen(name, layout, x[:cut, None]), seen(name, layout, x[cut:, None])
    before = ranges(second) if second.observed else None
    merged = first.merge(second)
    assert merged is first
    torch.testing.assert_close(ranges(merged), ranges(seen(name, layout, x[:, None])), rtol=1e-12, atol=1e-12)
    if before is not None:
        first.observe(torch.full((1, 3, 4), 1000.0))
        assert torch.equal(ranges(second), before)  # nothing is shared between the two


@pytest.mark.parametrize("name", OBSERVERS)
def test_merging_large_thinned_batches(name: str) -> None:
    torch.manual_seed(1)
    assert thinning_stride(70, 70 * 512) == 9
    batches = [torch.randn(images, 70, 512) * size for images, size in ((9, 1), (2, 5), (2, 0.1))]
    layout = ChannelLayout(-1, 64)
    merged = seen(name, layout, batches[:1]).merge(seen(name, layout, batches[1:]))
    torch.testing.assert_close(ranges(merged), ranges(seen(name, layout, batches)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SAMPLING)
def test_merging_between_two_rows_of_the_sample_keeps_both_samples(name: str) -> None:
    torch.manual_seed(1)
    first, second = torch.randn(2, 70, 512), 5 * torch.randn(4, 70, 512)
    layout = ChannelLayout(-1, 64)
    merged, other = seen(name, layout, [first]), seen(name, layout, [second])
    before = histogram_of(merged).counted
    merged.merge(other)
    assert histogram_of(merged).counted == before + histogram_of(other).counted
    whole = seen(name, layout, [first, second])
    assert abs(histogram_of(merged).counted - histogram_of(whole).counted) <= 64  # one row
    assert torch.equal(merged.extremes.high, whole.extremes.high)
    for observer in (merged, whole):
        observer.observe(first)
    assert abs(histogram_of(merged).counted - histogram_of(whole).counted) <= 64


TENSORS = {  # of one image, all larger than a sample: where the channel is
    "tokens, layer_wise": ((140, 96), ChannelLayout(None)),
    "tokens, channel_wise": ((140, 96), ChannelLayout(-1)),
    "tokens, head_wise": ((140, 96), ChannelLayout(-1, 32)),
    "few tokens, head_wise": ((17, 768), ChannelLayout(-1, 64)),
    "scores, layer_wise": ((6, 41, 41), ChannelLayout(None)),
    "scores by head": ((6, 41, 41), ChannelLayout(1)),
    "more images than positions": ((500, 3, 3), ChannelLayout(1, 250)),
    "logits, layer_wise": ((10_000,), ChannelLayout(None)),
    "logits, head_wise": ((10_000,), ChannelLayout(-1, 5_000)),
}


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("case", TENSORS)
def test_the_sample_does_not_depend_on_how_images_are_cut_into_batches(name: str, case: str) -> None:
    shape, layout = TENSORS[case]
    torch.manual_seed(0)
    x = torch.randn(24, *shape) * torch.logspace(-1, 1, 24).view(-1, *[1] * len(shape))
    cuts = [x.split(size) for size in (24, 1, 7, 8)] + [(x[:1], x[1:20], x[20:])]
    found = [torch.stack(seen(name, layout, batches).range(bits=8, signed=True)) for batches in cuts]
    if name == "PercentileObserver":  # a quantile of each batch: the one observer that knows batches
        assert not torch.equal(found[0], found[1])
        return
    for other in found[1:]:
        assert torch.equal(other, found[0])


@pytest.mark.parametrize("case", TENSORS)
def test_the_sample_is_about_as_large_for_every_image_and_reaches_every_row(case: str) -> None:
    shape, layout = TENSORS[case]
    observer = make("OmseObserver", layout)
    observer.observe(torch.ones(24, *shape))
    per_image = histogram_of(observer).counts.sum().item() / 24
    assert min(math.prod(shape), 2**9) <= per_image <= 2**12


def test_every_token_gets_its_turn_in_the_sample() -> None:
    """Of 70 tokens, one in 9 is counted in an image: in 9 images all of them."""
    token = torch.arange(70.0).view(1, 70, 1).expand(9, 70, 512)
    observer = make("OmseObserver", ChannelLayout(None), kl_bins=256)
    observer.observe(token)
    assert histogram_of(observer).counts[0, 128:198].tolist() == [512] * 70  # bins are 1 wide


def test_the_sample_of_a_weight_is_whole_up_to_4096_inputs() -> None:
    for layout in (ChannelLayout(None), ChannelLayout(0), ChannelLayout(0, 8)):
        for inputs, least, most in ((4096, 4096, 4096), (4097, 4097 // 3, 4097 // 2 + 1)):
            observer = make("OmseObserver", layout)
            observer.observe(torch.randn(16, inputs))
            assert 16 * least <= histogram_of(observer).counts.sum() <= 16 * most


@pytest.mark.parametrize("name", OBSERVERS)
def test_permuting_channels_permutes_ranges(name: str) -> None:
    x, order = activations(), torch.randperm(8)
    plain = seen(name, ChannelLayout(-1), [x, 2 * x])
    permuted = seen(name, ChannelLayout(-1), [x[..., order], 2 * x[..., order]])
    assert torch.equal(ranges(permuted), ranges(plain)[:, order])


@pytest.mark.parametrize("name", OBSERVERS)
def test_channels_do_not_disturb_each_other(name: str) -> None:
    x = activations()
    together = ranges(seen(name, ChannelLayout(-1), [x]))
    alone = [ranges(seen(name, ChannelLayout(None), [x[..., c]])) for c in range(8)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_scores_by_head_equal_each_head_alone(name: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 2, 11, 11) * torch.tensor([1.0, 9.0]).view(1, 2, 1, 1)
    together = ranges(seen(name, ChannelLayout(1), [scores]))
    alone = [ranges(seen(name, ChannelLayout(None), [scores[:, head]])) for head in range(2)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["KLObserver", "OmseObserver"])
def test_an_outlier_that_thinning_misses_still_counts(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 100, 512)  # every thirteenth row or so is counted
    x[0, 1, 7] = 8.0
    observer = seen(name, ChannelLayout(-1), [x])
    assert isinstance(observer, KLObserver | OmseObserver)
    assert observer.counts.sum() < 0.1 * x.numel()
    assert observer.counts[7, int(8.0 / histogram_of(observer).width[7]) + 128] == 1
    assert observer.range(bits=16, signed=True)[1][7] == 8.0


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("mode", LAYOUTS)
@pytest.mark.parametrize(("bad", "told"), [(math.nan, "found 0 Inf and 1 NaN"), (-math.inf, "found 1 Inf and 0 NaN")])
def test_values_that_are_no_numbers_are_refused_and_change_nothing(name: str, mode: str, bad: float, told: str) -> None:
    observer = seen(name, LAYOUTS[mode], [activations()])
    before = ranges(observer)
    x = activations(1)
    x[2, 5, 3] = bad
    with pytest.raises(NumericsError, match=f"{told}.*index 2 "):
        observer.observe(x)
    assert torch.equal(ranges(observer), before)


@pytest.mark.parametrize("where", [(0, 0, 0, 0), (2, 1, 10, 10), (1, 0, 5, 7)])
def test_nan_is_found_wherever_it_is(where: tuple[int, ...]) -> None:
    scores = torch.zeros(3, 2, 11, 11)
    scores[where] = math.nan
    with pytest.raises(NumericsError, match=f"index {where[0]} "):
        MinmaxObserver(ChannelLayout(1)).observe(scores)


def test_what_cannot_be_merged() -> None:
    minmax = seen("MinmaxObserver", ChannelLayout(-1), [activations()])
    others = [
        seen("OmseObserver", ChannelLayout(-1), [activations()]),
        seen("MinmaxObserver", ChannelLayout(None), [activations()]),
        seen("MinmaxObserver", ChannelLayout(-1), [activations()[..., :6]]),
    ]
    for other in others:
        with pytest.raises(LifecycleError):
            minmax.merge(other)
    kl = make("KLObserver", ChannelLayout(None))
    with pytest.raises(LifecycleError, match=r"'bins': 512.*'bins': 256"):
        kl.merge(make("KLObserver", ChannelLayout(None), kl_bins=512))
    with pytest.raises(LifecycleError, match="sigma"):
        make("PercentileObserver", ChannelLayout(None)).merge(
            make("PercentileObserver", ChannelLayout(None), percentile_sigma=0.2)
        )


@pytest.mark.parametrize("name", OBSERVERS)
def test_another_number_of_channels_is_refused(name: str) -> None:
    observer = seen(name, ChannelLayout(-1), [activations()])
    before = ranges(observer)
    with pytest.raises(LifecycleError, match="Got 6, expected 8"):
        observer.observe(activations()[..., :6])
    assert torch.equal(ranges(observer), before)
    with pytest.raises(ModelError):
        make(name, ChannelLayout(-1, 5)).observe(activations())


def test_registry() -> None:
    assert list(OBSERVERS) == ["MinmaxObserver", "PercentileObserver", "KLObserver", "OmseObserver"]
    for name, observer in OBSERVERS.items():
        assert type(make(name, ChannelLayout(None))) is observer
    with pytest.raises(
        ConfigError, match=r"MinMaxObserver.*expected one of MinmaxObserver, Perc.*write MinmaxObserver"
    ):
        make("MinMaxObserver", ChannelLayout(None))


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("PercentileObserver", "percentile_alpha", v) for v in (0.5, 1.1, math.nan)]
    + [("PercentileObserver", "percentile_sigma", v) for v in (0.0, 1.5)]
    + [("KLObserver", "kl_bins", v) for v in (62, 65, 65538)]
    + [("OmseObserver", "kl_bins", 0)],
)
def test_settings_out_of_bounds(name: str, setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=setting):
        make(name, ChannelLayout(None), **{setting: value})


def quantized(x: torch.Tensor, layout: ChannelLayout, low: Any, high: Any, **kind: Any) -> torch.Tensor:
    params = params_from_range(low, high, **kind)
    assert bool(params.scale.isfinite().all() and (params.scale > 0).all())
    assert bool((params.zero_point >= params.qmin).all() and (params.zero_point <= params.qmax).all())
    scale, zero = (layout.broadcast(p, x.ndim) for p in (params.scale, params.zero_point))
    return fake_quantize(x, QuantParams(scale, zero, params.qmin, params.qmax))


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("mode", LAYOUTS)
@pytest.mark.parametrize("signed", [True, False])
def test_every_grid_is_finite_and_as_exact_as_its_step(name: str, mode: str, signed: bool) -> None:
    """Inside the range no value is off by more than half a step (affine: and what rounding zero may cost)."""
    x, layout = activations(images=40), LAYOUTS[mode]
    x[..., 1] = 0  # without range
    x[..., 6] = x[..., 6].abs() + 3  # without zero
    observer = seen(name, layout, x.split(10))
    for bits in range(2, 17):
        low, high = observer.range(bits=bits, signed=signed)
        assert bool((low <= high).all())
        error = (quantized(x, layout, low, high, bits=bits, signed=signed) - x).abs().double()
        bottom, top = low.clamp(max=0), high.clamp(min=0)
        step = (torch.maximum(-bottom, top) if signed else top - bottom) / code_range(bits, signed)[1]
        beyond = torch.maximum(x - layout.broadcast(top, 3), layout.broadcast(bottom, 3) - x).clamp(min=0)
        bound = layout.broadcast(step, 3) * (0.5 if signed else 1) + beyond
        assert bool((error <= bound * (1 + 1e-5) + 1e-5).all())


@pytest.mark.parametrize("mode", LAYOUTS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 6, 8, 16])
def test_omse_loses_least(mode: str, signed: bool, bits: int) -> None:
    """Of all four; and about as little as the best fraction of the full range, tried on the values themselves."""
    torch.manual_seed(3)
    x = torch.distributions.StudentT(4.0).sample((24, 50, 8)) * torch.logspace(-1, 1, 8)
    layout = LAYOUTS[mode]

    def errors(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Per channel."""
        error = quantized(x, layout, low, high, bits=bits, signed=signed) - x
        return layout.split(error.double().square()).sum((0, 2))

    losses = {}
    for name in OBSERVERS:
        observer = make(name, layout, kl_bins=2048)
        observer.observe(x)
        losses[name] = float(errors(*observer.range(bits=bits, signed=signed)).sum())
    full = full_range(observer.extremes.low, observer.extremes.high, signed)
    best = torch.stack([errors(f * full[0], f * full[1]) for f in torch.linspace(1, 0.02, 100)]).amin(dim=0).sum()
    assert losses["OmseObserver"] <= 1.01 * min(losses.values())
    assert losses["OmseObserver"] <= 1.08 * best  # candidates lie 9 % apart, outliers anywhere
