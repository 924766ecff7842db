"""The softmax layer in all its forms, on scores with and without a grid."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from vitquant.adapters.adapt import sqnr_db
from vitquant.config import QuantConfig
from vitquant.config.quant_config import BitType
from vitquant.errors import LifecycleError
from vitquant.layers import IntSoftmax, Mode
from vitquant.numerics.affine import QuantParams, fake_quantize
from vitquant.numerics.quantized import on, real

FORMS = ["uniform", "row", "diffusion", "log2"]
APPROXIMATIONS = ["table", "ibert", "shiftmax"]
NAME = "blocks.0.intSoft"


def config(softmax: str = "uniform", approximation: str = "table", bits: int = 8, **fields: object) -> QuantConfig:
    return QuantConfig(
        bit_type=BitType(bits=bits, signed=False),
        softmax=softmax,  # type: ignore[arg-type]
        approximation=approximation,  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )


def raw_scores(heads: int = 3, tokens: int = 17) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, heads, tokens, tokens, generator=generator) * torch.tensor([1.0, 2, 4])[:heads, None, None]


def per_head_grid(scores: Tensor) -> QuantParams:
    scale = scores.abs().amax((0, 2, 3), keepdim=True)[0] / 127
    return QuantParams(scale, torch.zeros_like(scale), -128, 127)


def calibrated(layer: IntSoftmax, scores: Tensor) -> IntSoftmax:
    layer.set_mode(Mode.CALIBRATE)
    assert torch.equal(layer(scores), scores.softmax(-1)), "calibration watches the float softmax"
    layer.finish()
    layer.set_mode(Mode.QUANTIZED)
    return layer


def test_the_specifications_signature() -> None:
    layer = IntSoftmax(quant_config=QuantConfig(), layer_name="intSoft")
    assert layer.name == "intSoft"
    x = raw_scores()
    assert torch.equal(layer(x), x.softmax(-1))


LEAST_DB = {
    # In dB against the exact softmax of the same scores; 1 to 2 dB below what was measured.
    ("row", "table"): 46,
    ("row", "ibert"): 45,
    ("row", "shiftmax"): 33,
    ("diffusion", "table"): 46,
    ("diffusion", "ibert"): 45,
    ("diffusion", "shiftmax"): 33,
    ("uniform", "table"): 41,
    ("uniform", "ibert"): 41,
    ("uniform", "shiftmax"): 32,
    ("log2", "table"): 14,
    ("log2", "ibert"): 14,
    ("log2", "shiftmax"): 14,
}


@pytest.mark.parametrize("gridded", [True, False])
@pytest.mark.parametrize(("form", "approximation"), list(itertools.product(FORMS, APPROXIMATIONS)))
def test_every_form_is_near_the_softmax(form: str, approximation: str, gridded: bool) -> None:
    scores = raw_scores()
    grid = per_head_grid(scores) if gridded else None
    if grid is not None:
        scores = fake_quantize(scores, grid)
    layer = calibrated(IntSoftmax(config(form, approximation)), scores)
    p, exact = layer(scores if grid is None else on(scores, grid)), scores.softmax(-1)
    assert p.shape == exact.shape
    assert p.isfinite().all()
    assert (p >= 0).all()
    assert sqnr_db(exact, p) >= LEAST_DB[form, approximation]
    if form in ("row", "diffusion"):
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
    if form == "log2":
        nonzero = p[p > 0]
        assert torch.equal(torch.log2(nonzero), torch.log2(nonzero).round()), "powers of two"
        assert nonzero.min() >= 2**-15
    if form == "uniform":
        params = layer.require_params()
        codes = p / params.scale
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
        assert 0 <= codes.min() <= codes.max() <= 255


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_each_head_has_a_table_of_its_own(form: str, approximation: str) -> None:
    raw = raw_scores()
    grid = per_head_grid(raw)
    scores = fake_quantize(raw, grid)
    layer = calibrated(IntSoftmax(config(form, approximation)), scores)
    together = layer(on(scores, grid))
    for head in range(3):
        own = QuantParams(grid.scale[head].reshape(()), torch.tensor(0.0), -128, 127)
        assert torch.equal(layer(on(scores[:, head : head + 1], own)), together[:, head : head + 1])
    wrong = QuantParams(grid.scale.amax().expand(3, 1, 1), grid.zero_point, -128, 127)
    assert not torch.equal(layer(on(scores, wrong)), together)


def test_row_form_in_integers() -> None:
    """The codes of a row are ``round(255 exp(-scale d))`` of the distances between the scores' codes."""
    grid = QuantParams(torch.tensor(0.1), torch.tensor(0.0), -128, 127)
    codes = torch.tensor([[[[3, 5, -20, 5], [-128, 127, 0, 0]]]])
    layer = IntSoftmax(config("row"))
    layer.set_mode(Mode.QUANTIZED)
    p = layer(on(codes * grid.scale, grid))
    for row, out in zip(codes[0, 0].tolist(), p[0, 0].tolist(), strict=True):
        numerators = [round(255 * math.exp(-0.1 * (max(row) - c))) for c in row]
        assert out == pytest.approx([n / sum(numerators) for n in numerators])


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_diffusion_in_integers(bits: int) -> None:
    """Codes are differences of the rounded sums of ``(2^b - 1) exp(-scale d)``, which has 8 fractional bits."""
    grid = QuantParams(torch.tensor(0.1), torch.tensor(0.0), -128, 127)
    codes = torch.tensor([[[[3, 5, -20, 5, 4, -9], [-128, 127, 0, 0, 0, 90], [7, 7, 7, 7, 7, 7]]]])
    layer = IntSoftmax(config("diffusion", bits=bits))
    layer.set_mode(Mode.QUANTIZED)
    p = layer(on(codes * grid.scale, grid))
    for row, out in zip(codes[0, 0].tolist(), p[0, 0].tolist(), strict=True):
        exponentials = [round((2**bits - 1) * 256 * math.exp(-0.1 * (max(row) - c))) for c in row]
        sums = [math.floor(Fraction(sum(exponentials[:i]), 256) + Fraction(1, 2)) for i in range(len(row) + 1)]
        assert out == pytest.approx([(b - a) / sums[-1] for a, b in itertools.pairwise(sums)])


def test_diffusion_of_floats_is_that_of_their_table() -> None:
    """Scores on a grid give the same probabilities as their codes."""
    grid = QuantParams(torch.tensor(0.1), torch.tensor(0.0), -128, 127)
    codes = torch.randint(-128, 128, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0))
    layer = IntSoftmax(config("diffusion"))
    layer.set_mode(Mode.QUANTIZED)
    scores = codes.double() * 0.1
    torch.testing.assert_close(layer(scores), layer(on(scores.float(), grid)).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [257, 1370, 4096])
def test_diffusion_keeps_what_is_far_below_the_largest(tokens: int) -> None:
    """A flat row with one peak: each of its codes would round to 0, and most of the sum with them."""
    scores = torch.full((1, 1, 1, tokens), -6.5, dtype=torch.float64)
    scores[..., tokens // 2] = 0
    found = {}
    for form in ("row", "diffusion"):
        layer = IntSoftmax(config(form))
        layer.set_mode(Mode.QUANTIZED)
        found[form] = layer(scores)[..., tokens // 2].item()
    exact = 1 / (1 + (tokens - 1) * math.exp(-6.5))
    assert found["row"] == 1
    assert found["diffusion"] == pytest.approx(exact, rel=0.01)


def test_a_zero_point_of_the_scores_cancels() -> None:
    scale = torch.tensor(0.1)
    signed, unsigned = (
        QuantParams(scale, torch.tensor(z), *ends) for z, ends in ((0.0, (-128, 127)), (40.0, (0, 255)))
    )
    scores = torch.randint(-40, 127, (2, 1, 5, 5), generator=torch.Generator().manual_seed(0)) * scale
    layer = IntSoftmax(config("row"))
    layer.set_mode(Mode.QUANTIZED)
    assert torch.equal(layer(on(scores, signed)), layer(on(scores, unsigned)))


def test_only_the_uniform_form_needs_statistics() -> None:
    for form in FORMS:
        layer = IntSoftmax(config(form))
        layer.set_mode(Mode.QUANTIZED)
        if form == "uniform":
            with pytest.raises(LifecycleError, match="no statistics for intSoft"):
                layer(raw_scores())
        else:
            assert layer(raw_scores()).isfinite().all()
            assert layer.acting is None
            layer.finish()
            assert layer.params is None


@pytest.mark.parametrize("mode", ["layer_wise", "channel_wise", "head_wise"])
def test_uniform_has_one_scale_a_head_or_one(mode: str) -> None:
    scores = raw_scores()
    layer = calibrated(IntSoftmax(config(calibration_mode=mode), NAME), scores)
    expected = scores.softmax(-1).amax() if mode == "layer_wise" else scores.softmax(-1).amax((0, 2, 3))
    torch.testing.assert_close(layer.require_params().scale.squeeze(), expected / 255)


def test_extreme_scores() -> None:
    scores = torch.tensor([[[[0.0, 1e4], [-1e30, 1e30], [7.0, 7.0], [3e38, 3e38]]]])
    expected = [[0, 1], [0, 1], [0.5, 0.5], [0.5, 0.5]]
    for form, approximation in itertools.product(("row", "diffusion", "log2"), APPROXIMATIONS):
        layer = IntSoftmax(config(form, approximation))
        layer.set_mode(Mode.QUANTIZED)
        assert layer(scores)[0, 0].tolist() == expected, (form, approximation)


def test_the_hook_compares_with_the_exact_softmax() -> None:
    layer = IntSoftmax(config("row"))
    layer.set_mode(Mode.QUANTIZED)
    seen: list[tuple[Tensor, Tensor]] = []
    layer.hook = lambda point, before, after: seen.append((before(), real(after)))
    scores = raw_scores()
    out = layer(scores)
    assert torch.equal(seen[0][0], scores.softmax(-1))
    assert seen[0][1] is out
