"""Migration of the scales of a linear layer's input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vitquant
from support.integer_models import disagreements, pixels, quantized
from vitquant.architectures.model import QuantModel
from vitquant.calibration.repair.migration import migrated
from vitquant.config import BitType, QuantConfig
from vitquant.errors import ConfigError
from vitquant.layers import QAct
from vitquant.numerics.affine import QuantParams, dequantize, params_from_range

pytestmark = pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")


def point(signed: bool = False) -> QAct:
    return QAct(QuantConfig(bit_type=BitType(signed=signed), calibration_mode="channel_wise"))


def test_a_hand_computed_case() -> None:
    given = QuantParams(torch.tensor([1.0, 4.0]), torch.tensor([128.0, 64.0]), 0, 255)
    found = migrated(point(), given, 0.5)
    assert found.scale.tolist() == [2.0, 4.0]  # 1^0.5 * 4^0.5, and the widest stays
    assert found.zero_point.tolist() == [128.0, 64.0]
    shifted = migrated(point(), QuantParams(torch.tensor([1.0, 4.0]), torch.tensor([28.0, 64.0]), 0, 255), 0.5)
    assert shifted.zero_point.tolist() == [78.0, 64.0]  # the middle stands for 100 before and after


def test_one_gives_one_scale_and_zero_changes_nothing() -> None:
    given = QuantParams(torch.tensor([0.5, 1.5, 3.0]), torch.zeros(3), -128, 127)
    assert migrated(point(signed=True), given, 0) is given
    assert migrated(point(signed=True), given, 1).scale.tolist() == [3.0, 3.0, 3.0]


def test_a_channel_without_range_says_nothing() -> None:
    flat = point(signed=True)
    flat.no_range = 1
    given = QuantParams(torch.tensor([1.0, 0.01, 0.04]), torch.zeros(3), -128, 127)
    assert migrated(flat, given, 0.5).scale.tolist() == pytest.approx([1.0, 0.02, 0.04])


@given(
    st.lists(st.tuples(st.floats(-100, 0), st.floats(0.01, 100)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_no_scale_gets_finer_and_every_range_is_still_covered(
    ranges: list[tuple[float, float]], alpha: float, signed: bool
) -> None:
    low, high = torch.tensor(ranges, dtype=torch.float64).unbind(1)
    before = params_from_range(low, high, bits=8, signed=signed)
    after = migrated(point(signed), before, alpha)
    assert bool((after.scale >= before.scale * (1 - 1e-6)).all())
    ends = [dequantize(torch.tensor(float(code)), after).double() for code in (after.qmin, after.qmax)]
    room = after.scale.double()  # rounding of the zero point
    assert bool((ends[0] <= low + room).all())
    assert bool((ends[1] >= high - room).all())


def with_step(alphas: list[float], **changes: Any) -> QuantModel:
    norms = {
        "defaults": {"norm": {"calibration_mode": "channel_wise"}, "activation": {"calibration_mode": "channel_wise"}}
    }
    return quantized({**norms, **changes, "repair": [{"migration": {"alphas": alphas, "images": 8}}]})


def test_every_folded_input_is_migrated_and_the_integers_follow() -> None:
    plain, moved = with_step([0.0]), with_step([1.0])
    for name in ("norm1", "norm2", "attn_v_out", "mlp_gelu"):
        before, after = (m.point_modules()[f"blocks.1.{name}"].require_params() for m in (plain, moved))
        assert bool((before.scale != before.scale[0]).any())
        assert torch.allclose(after.scale, before.scale.max().expand_as(after.scale))
    for name in ("attn_q_out", "attn_k_out", "attn_v_input", "mlp_fc1.output"):  # no linear layer reads them
        before, after = (m.point_modules()[f"blocks.1.{name}"].require_params() for m in (plain, moved))
        assert torch.equal(before.scale, after.scale)
    assert disagreements(moved, vitquant.compile(moved), pixels(4, seed=3)) == {}


def test_powers_of_two_stay() -> None:
    power = {"norm1": {"quantization_method": "power_of_two"}}
    found = with_step([0.5], **power).point_modules()["blocks.0.norm1"].require_params()
    assert bool((found.scale.log2() == found.scale.log2().round()).all())


def test_of_several_exponents_the_one_with_the_smallest_error_is_taken() -> None:
    chosen, single = with_step([0.0, 0.3, 1.0]), {alpha: with_step([alpha]) for alpha in (0.0, 0.3, 1.0)}
    taken = set()
    for name in ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.mlp_gelu"):
        scale = chosen.point_modules()[name].require_params().scale
        same = [a for a, m in single.items() if torch.equal(m.point_modules()[name].require_params().scale, scale)]
        assert len(same) == 1
        taken.update(same)
    assert 1.0 not in taken  # one scale for all loses most at 8 bits


@pytest.mark.parametrize("alphas", [[], [1.5], [-0.1], "0.3"])
def test_exponents_that_cannot_be_are_refused(alphas: object) -> None:
    with pytest.raises(ConfigError, match=r"alphas: .*Got .*, expected a list, each item a number from 0 to 1\."):
        vitquant.ModelConfig.from_dict({"weight": {}, "repair": [{"migration": {"alphas": alphas}}]})
