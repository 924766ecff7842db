"""Bias correction: by hand, on average, and in all forms of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitquant
from support.integer_models import ARCHITECTURES, CONFIGS, SHIPPABLE, disagreements, merged, pixels, quantized
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.architectures.model import QuantModel
from vitquant.architectures.vit import QuantViT
from vitquant.artifact.storage import state
from vitquant.calibration.calibrate import calibrate_batches
from vitquant.calibration.repair import make_steps, repair_images
from vitquant.config import QuantConfig
from vitquant.config.quant_config import BitType
from vitquant.errors import LifecycleError
from vitquant.executors.reference import Reference
from vitquant.layers import Mode, Point, QAct, QuantLinear, hooked, only, points_of, set_mode
from vitquant.layers.layer import Composite, entrance
from vitquant.numerics.quantized import Accumulators, Value, real

pytestmark = pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")

STEPS = ["bias_correction"]
FOUR_BITS = QuantConfig(calibration_mode="channel_wise", bit_type=BitType(bits=4))


def hand_made() -> nn.Linear:
    module = nn.Linear(2, 2)
    module.weight.data = torch.tensor([[1.2, -2.0], [0.5, 0.2]])
    module.bias.data = torch.tensor([0.3, -0.2])
    return module


def test_by_hand() -> None:
    """4-bit weights are [[8/7, -2], [1/2, 1.5/7]]; the inputs are 2 and 1 on average."""
    layer = QuantLinear(hand_made(), None, FOUR_BITS, "fc")
    set_mode(layer, Mode.QUANTIZED)
    (record,) = repair_images(layer, make_steps(STEPS), torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    torch.testing.assert_close(layer.bias_hat, torch.tensor([0.3 + (1.2 - 8 / 7) * 2, -0.2 + (0.2 - 1.5 / 7) * 1]))
    assert record.changed == ("fc",)
    assert record.sqnr_after_db > record.sqnr_before_db + 3


class Rounded(Composite):
    """A linear layer with a quantized input."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__()
        self.act = QAct(QuantConfig(bit_type=BitType(bits=3, signed=False)), None, "act")
        self.fc = QuantLinear(module, None, FOUR_BITS, "fc")

    @entrance
    def forward(self, x: Tensor) -> Value:
        return self.fc(self.act(x))  # type: ignore[no-any-return]


def test_by_hand_with_a_quantized_input() -> None:
    """The input's scale is 1/7 of 3.5, so 1.1 becomes 1.0, 2.2 becomes 2.0, 3.5 stays, and their means move."""
    model = Rounded(hand_made())
    x = torch.tensor([[0.0, 1.1], [3.5, 2.2]])
    calibrate_batches(model, [x])
    repair_images(model, make_steps(STEPS), x)
    exact, rounded = torch.tensor([1.75, 1.65]), torch.tensor([1.75, 1.5])
    wanted = torch.tensor([[1.2, -2.0], [0.5, 0.2]]) @ exact + torch.tensor([0.3, -0.2])
    wanted -= torch.tensor([[8 / 7, -2], [0.5, 1.5 / 7]]) @ rounded
    unit = torch.tensor([2 / 7, 0.5 / 7]) * 0.5
    torch.testing.assert_close(model.fc.bias_hat, (wanted / unit).round() * unit)


def test_a_layer_without_a_bias_gets_one() -> None:
    module = hand_made()
    module.bias = None  # type: ignore[assignment]
    layer = QuantLinear(module, None, FOUR_BITS, "fc")
    set_mode(layer, Mode.QUANTIZED)
    repair_images(layer, make_steps(STEPS), torch.tensor([[2.0, 1.0]]))
    torch.testing.assert_close(layer.bias_hat, torch.tensor([(1.2 - 8 / 7) * 2, (0.2 - 1.5 / 7) * 1]))


def mean_outputs(model: QuantModel, images: Tensor, *, rounding: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The mean output per channel of each linear layer before it is rounded, and the unit of its accumulators."""
    means: dict[str, Tensor] = {}
    units: dict[str, Tensor] = {}

    def hook(point: Any, _: object, after: Value) -> None:
        means[point.name] = real(after).double().flatten(0, -2).mean(0)
        if isinstance(after, Accumulators):
            units[point.name] = after.unit

    weights: list[Point] = [linear.weight for linear in model.linears()]
    with only(points_of(model) if rounding else [], model), hooked(weights, hook):
        model(images)
    return means, units


@pytest.mark.job
@pytest.mark.parametrize("changes", [CONFIGS[name] for name in ("as shipped", "4 bits", "all unsigned", "outputs too")])
@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
@torch.no_grad()
def test_no_channel_is_wrong_on_average(changes: dict[str, Any], spec: dict[str, Any]) -> None:
    model, images = quantized(changes, **spec), pixels(16)
    vitquant.repair(model, images, STEPS)
    (exact, _), (rounded, units) = (mean_outputs(model, images, rounding=rounding) for rounding in (False, True))
    assert units.keys() == exact.keys() == {linear.weight.name for linear in model.linears()}
    for name, unit in units.items():
        slack = 1e-5 * float(exact[name].abs().max()) + 1e-6
        assert ((exact[name] - rounded[name]).abs() <= 0.5 * unit + slack).all(), name


def test_it_corrects_what_is_still_wrong_and_nothing_else() -> None:
    model, images = quantized(), pixels(16)
    (first,) = vitquant.repair(model, images, STEPS)
    assert set(first.changed) == {linear.layer_name for linear in model.linears()}
    (second,) = vitquant.repair(model, images, STEPS)
    assert second.changed == ()
    assert second.sqnr_before_db == second.sqnr_after_db == first.sqnr_after_db


def test_the_batch_size_hardly_matters() -> None:
    a, b = quantized(), quantized()
    vitquant.repair(a, pixels(16), STEPS, batch_size=16)
    vitquant.repair(b, pixels(16), STEPS, batch_size=3)
    for one, two in zip(a.linears(), b.linears(), strict=True):
        torch.testing.assert_close(one.bias_hat, two.bias_hat, rtol=1e-2, atol=1e-3)


def test_float_layers_stay_as_they_are() -> None:
    floats = {"mlp_fc1": {"weight": {"output_quant_enable": False}, "output": {"output_quant_enable": False}}}
    model, images = quantized(floats), pixels(16)
    (record,) = vitquant.repair(model, images, STEPS)
    assert [name for name in record.changed if "fc1" in name] == []
    assert "blocks.0.mlp_fc2" in record.changed


@pytest.mark.job
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_integers_are_those_of_the_simulation(changes: dict[str, Any]) -> None:
    model = quantized(changes)
    vitquant.repair(model, pixels(16), STEPS)
    program, images = vitquant.compile(model), pixels(7, seed=1)
    assert disagreements(model, program, images) == {}
    simulated = model(model.preprocessing.normalize(images))
    integer = Reference(program)(images).real()
    torch.testing.assert_close(integer, simulated, rtol=1e-4, atol=1e-4 * float(simulated.abs().max()))


@pytest.mark.job
@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
def test_every_architecture_still_agrees(spec: dict[str, Any]) -> None:
    model = quantized(**spec)
    vitquant.repair(model, pixels(16), STEPS)
    assert disagreements(model, vitquant.compile(model), pixels(5, seed=2)) == {}


def test_the_saved_model_is_the_corrected_one(tmp_path: Path) -> None:
    model, images = quantized(merged(SHIPPABLE, {"repair": STEPS})), pixels(4, seed=1)
    vitquant.save(model, tmp_path / "a")
    loaded = vitquant.load(tmp_path / "a")
    assert torch.equal(loaded(images), model(images))
    assert not torch.equal(quantized()(images), model(images))
    assert loaded.config.repair == model.config.repair
    assert vitquant.compile(loaded).metadata["run"] == vitquant.compile(model).metadata["run"]


def test_a_loaded_model_needs_its_float_weights(tmp_path: Path) -> None:
    model, images = quantized(), pixels(4)
    vitquant.save(model, tmp_path / "a")
    with pytest.raises(LifecycleError, match=r"patch_embed was loaded with its integer weights only"):
        vitquant.repair(vitquant.load(tmp_path / "a"), images, STEPS)


def test_a_loaded_model_with_its_float_weights(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = make_vit(img_size=(16, 16))
    preprocessing = vitquant.Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
    model = QuantViT(vit, vitquant.ModelConfig.from_dict(SHIPPABLE), preprocessing)
    vitquant.calibrate(model, pixels(16))
    plain = {name: tensor.clone() for name, tensor in state(model)}
    vitquant.repair(model, pixels(16), STEPS)
    vitquant.save(model, tmp_path / "a")
    loaded = vitquant.load(tmp_path / "a", vit=vit)
    (again,) = vitquant.repair(loaded, pixels(16), STEPS)
    assert again.changed == ()
    vitquant.calibrate(loaded, pixels(16))  # starts again from the float weights
    assert all(torch.equal(tensor, plain[name]) for name, tensor in state(loaded))


def test_another_calibration_starts_from_the_float_weights() -> None:
    model = quantized()
    plain = {name: tensor.clone() for name, tensor in state(model)}
    vitquant.repair(model, pixels(16), STEPS)
    assert not all(torch.equal(tensor, plain[name]) for name, tensor in state(model))
    vitquant.calibrate(model, pixels(16))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in state(model))
