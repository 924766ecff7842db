"""A global file and the per-layer file written from it give the identical model, point by point."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.model import QuantModel
from vitquant.architectures.vit import QuantAttention
from vitquant.config import ModelConfig
from vitquant.config.migrate import migrate
from vitquant.layers import QuantLinear
from vitquant.workflows.quantize import quantize

LEGACY = """\
outputs:
  calibration_mode: channel_wise
  bit_type: {bits: 8, signed: False}
  observer_type: MinmaxObserver
  enable_profiler: True
weight:
  calibration_mode: channel_wise
  bit_type: {bits: 8, signed: True}
  observer_type: MinmaxObserver
"""

RICH = """\
outputs:
  calibration_mode: layer_wise
  bit_type: {bits: 10, signed: True}
  observer_type: PercentileObserver
  percentile_alpha: 0.9999
  output_quant_enable: False
weight:
  calibration_mode: channel_wise
  bit_type: {bits: 6, signed: True}
  observer_type: OmseObserver
  quantization_method: power_of_two
activation:
  calibration_mode: head_wise
  bit_type: {bits: 9, signed: True}
  observer_type: KLObserver
  kl_bins: 512
norm:
  calibration_mode: channel_wise
  bit_type: {bits: 8, signed: True}
intsoft:
  bit_type: {bits: 8, signed: False}
  softmax: row
  approximation: ibert
"""


def linears(model: QuantModel) -> dict[str, QuantLinear]:
    return {m.layer_name: m for m in model.modules() if isinstance(m, QuantLinear)}


@pytest.mark.job
@pytest.mark.parametrize("text", [LEGACY, RICH], ids=["legacy", "rich"])
@torch.no_grad()
def test_the_models_are_identical(
    text: str, tmp_path: Path, fashion: FloatModel, fashion_images: Tensor, calibration_images: Tensor
) -> None:
    old, new = tmp_path / "global.yaml", tmp_path / "layers.yaml"
    old.write_text(text)
    new.write_text(migrate(old))
    assert ModelConfig.from_yaml(new).document.form == "per-layer"
    before, after = (quantize(fashion, path, calibration=calibration_images[:16]) for path in (old, new))

    assert before.config == after.config
    for a, b in zip(before.points(), after.points(), strict=True):
        assert (a.name, a.config, a.active, a.shape) == (b.name, b.config, b.active, b.shape)
        assert (a.params is None) == (b.params is None), a.name
        if a.params is not None and b.params is not None:
            assert torch.equal(a.params.scale, b.params.scale), a.name
            assert torch.equal(a.params.zero_point, b.params.zero_point), a.name
            assert (a.params.qmin, a.params.qmax) == (b.params.qmin, b.params.qmax), a.name
    for (name, one), other in zip(linears(before).items(), linears(after).values(), strict=True):
        assert torch.equal(one.weight_codes, other.weight_codes), name
        assert torch.equal(one.bias_hat, other.bias_hat), name
    assert torch.equal(before(fashion_images), after(fashion_images))
    assert not torch.equal(before(fashion_images), fashion.vit(fashion_images))


@torch.no_grad()
def test_the_attention_block_reads_both(tmp_path: Path, fashion: FloatModel) -> None:
    from vitquant.config import load_config_from_yaml

    old, new = tmp_path / "global.yaml", tmp_path / "layers.yaml"
    old.write_text(LEGACY)
    new.write_text(migrate(old))
    block = fashion.vit.blocks[0]
    one, two = (QuantAttention(block, load_config_from_yaml(path)) for path in (old, new))
    for a, b in zip(one.modules(), two.modules(), strict=True):
        assert getattr(a, "config", None) == getattr(b, "config", None)
