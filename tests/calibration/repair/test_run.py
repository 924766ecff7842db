"""What repair steps are given, what they may change, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import vitquant
from support.integer_models import SHIPPABLE, disagreements, merged, pixels, quantized
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.architectures.model import QuantModel
from vitquant.architectures.vit import QuantViT
from vitquant.artifact.storage import state
from vitquant.calibration.calibrate import calibrate_batches
from vitquant.calibration.repair import (
    REPAIR_STEPS,
    GraphBlock,
    LayerInputs,
    RepairStep,
    RepairWarning,
    make_steps,
    repair_images,
)
from vitquant.calibration.rewrite import REWRITES
from vitquant.config import AugmentationSettings, BiasCorrectionSettings, Phase, QuantConfig, RepairSettings
from vitquant.config.repair import REPAIR_SETTINGS
from vitquant.errors import ConfigError, LifecycleError
from vitquant.layers import Mode, QAct, QuantLinear
from vitquant.layers.layer import Composite, entrance
from vitquant.numerics.quantized import Value, real

pytestmark = pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")

Log = list[tuple[str, str]]


def tensors(model: QuantModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state(model)}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


class CoarserSettings(RepairSettings):
    name: ClassVar[str] = "coarser"
    owner: ClassVar[str] = name


class Coarser(RepairStep):
    """Doubles the scale of each block's second norm, which is folded into ``mlp_fc1``."""

    def repair_block(self, block: GraphBlock) -> None:
        for point in block.points:
            if point.name.endswith("norm2"):
                params = point.require_params()
                block.rescale(point, replace(params, scale=params.scale * 2))


class NudgeSettings(RepairSettings):
    name: ClassVar[str] = "nudge"
    owner: ClassVar[str] = name


class Nudge(RepairStep):
    """Moves the integer weights of each layer towards zero by one."""

    def repair_layer(self, layer: LayerInputs) -> None:
        codes = layer.linear.weight_codes
        layer.linear.revise(layer.params, codes=codes - codes.sign())


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Two toy steps, registered, and a log of what all steps are called with."""
    for settings, toy in ((CoarserSettings, Coarser), (NudgeSettings, Nudge)):
        monkeypatch.setitem(REPAIR_SETTINGS, settings.name, settings)
        monkeypatch.setitem(REPAIR_STEPS, settings.name, toy)
    log: Log = []
    for step in REPAIR_STEPS.values():
        block, layer = step.repair_block, step.repair_layer

        def logged_block(self: Any, block: GraphBlock, call: Any = block) -> None:
            log.append((self.settings.name, block.name))
            call(self, block)

        def logged_layer(self: Any, layer: LayerInputs, call: Any = layer) -> None:
            log.append((self.settings.name, layer.linear.layer_name))
            call(self, layer)

        monkeypatch.setattr(step, "repair_block", logged_block)
        monkeypatch.setattr(step, "repair_layer", logged_layer)
    return log


ORDER = [
    *("patch_embed to pos_embed", "patch_embed"),
    *("blocks.0", "blocks.0.attn_qkv", "blocks.0.attn_proj", "blocks.0.mlp_fc1", "blocks.0.mlp_fc2"),
    *("blocks.1", "blocks.1.attn_qkv", "blocks.1.attn_proj", "blocks.1.mlp_fc1", "blocks.1.mlp_fc2"),
    *("final_norm to head", "head"),
]


def test_steps_follow_each_other_block_by_block_in_the_order_of_the_file(toys: Log) -> None:
    steps = ["nudge", {"coarser": {"images": 3}}, "bias_correction"]
    model = quantized(merged(SHIPPABLE, {"repair": steps}))
    assert toys == [(name, place) for name in ("nudge", "coarser", "bias_correction") for place in ORDER]
    assert [step.name for step in model.config.repair] == ["nudge", "coarser", "bias_correction"]


def test_steps_may_change_scales_weights_and_biases(toys: Log) -> None:
    model, images = quantized(), pixels(16)
    plain = tensors(model)
    (record,) = vitquant.repair(model, images, ["coarser"])
    rescaled = tensors(model)
    assert set(record.changed) == {f"blocks.{i}.{part}" for i in (0, 1) for part in ("norm2", "mlp_fc1")}
    for i in (0, 1):
        norm, folded = f"blocks.{i}.norm2.scale", f"blocks.{i}.mlp_fc1.input_scale"
        assert torch.equal(rescaled[norm], plain[norm] * 2)
        assert torch.equal(rescaled[folded], rescaled[norm])
    assert disagreements(model, vitquant.compile(model), images) == {}

    vitquant.repair(model, images, ["nudge"])
    nudged = tensors(model)
    weights = {f"{linear.layer_name}.codes" for linear in model.linears()}
    assert weights <= changed(rescaled, nudged)
    for name in weights:
        assert torch.equal(nudged[name], rescaled[name] - rescaled[name].sign())
    assert disagreements(model, vitquant.compile(model), images) == {}

    (record,) = vitquant.repair(model, images, ["bias_correction"])
    assert changed(nudged, tensors(model)) == {f"{linear.layer_name}.bias" for linear in model.linears()}
    assert record.sqnr_after_db > record.sqnr_before_db


def test_the_order_matters(toys: Log) -> None:
    """Folding again starts from the float weights, so scales come first."""
    one = quantized(merged(SHIPPABLE, {"repair": ["coarser", "nudge"]}))
    two = quantized(merged(SHIPPABLE, {"repair": ["nudge", "coarser"]}))
    name = "blocks.0.mlp_fc1.codes"
    assert not torch.equal(tensors(one)[name], tensors(two)[name])


class Watch(RepairStep):
    """Notes what it is given, and changes nothing."""

    def __init__(self, images: int = 64) -> None:
        super().__init__(BiasCorrectionSettings(images=images))
        self.blocks: list[tuple[str, list[Tensor], list[Value], list[Tensor], list[Value]]] = []
        self.layers: dict[str, list[tuple[Tensor, Value]]] = {}
        self.nbytes: list[int] = []

    def repair_block(self, block: GraphBlock) -> None:
        exact, rounded = (list(values) for values in zip(*block.batches(), strict=True))
        outputs = [block.exact_output(x) for x in exact], [block.rounded_output(q) for q in rounded]
        self.blocks.append((block.name, exact, rounded, *outputs))
        self.nbytes.append(block.exact.nbytes + block.rounded.nbytes)

    def repair_layer(self, layer: LayerInputs) -> None:
        self.layers[layer.linear.layer_name] = list(layer.batches())
        self.nbytes.append(layer.exact.nbytes + layer.rounded.nbytes)


def test_a_step_gets_the_inputs_and_outputs_of_each_block() -> None:
    model, images, watch = quantized(), pixels(5), Watch()
    vitquant.repair(model, images, [watch], batch_size=2)
    assert [name for name, *_ in watch.blocks] == [name for name in ORDER if " to " in name or name.count(".") == 1]
    for (_, _, _, exact, rounded), (_, next_exact, next_rounded, *_) in zip(
        watch.blocks, watch.blocks[1:], strict=False
    ):
        assert all(torch.equal(a, b) for a, b in zip(exact, next_exact, strict=True))
        assert all(torch.equal(real(a), real(b)) for a, b in zip(rounded, next_rounded, strict=True))
    _, first, *_, exact, rounded = (*watch.blocks[0][:2], *watch.blocks[-1][3:])
    assert torch.equal(torch.cat(first), images)
    torch.testing.assert_close(torch.cat([real(q) for q in rounded]), model(images))
    model.set_mode(Mode.FP32)
    torch.testing.assert_close(torch.cat(exact), model(images))


def test_a_step_gets_the_inputs_of_each_linear_layer() -> None:
    model, images, watch = quantized(), pixels(5), Watch()
    vitquant.repair(model, images, [watch], batch_size=2)
    assert list(watch.layers) == [linear.layer_name for linear in model.linears()]
    for linear in model.linears():
        for x, q in watch.layers[linear.layer_name]:
            assert x.shape == real(q).shape
            assert x.shape[-1] == linear.float_weight.shape[1]
            assert 0 < (x - real(q)).abs().mean() < 0.2 * x.abs().mean()


def test_memory_does_not_depend_on_the_depth() -> None:
    peaks = []
    for depth, count in ((1, 4), (4, 4), (4, 8)):
        watch = Watch(images=count)
        vitquant.repair(quantized(depth=depth), pixels(8), [watch], batch_size=2)
        peaks.append(max(watch.nbytes))
    tokens, dim, hidden = 17, 24, 48
    assert peaks[0] == peaks[1] == peaks[2] / 2
    image = 3 * 16 * 16 * 2  # the input of the model, in both streams
    assert peaks[1] <= 4 * max(image, tokens * (6 * dim + 5 * hidden))


def test_each_step_uses_its_own_number_of_images() -> None:
    model = quantized()
    few, many = vitquant.repair(model, pixels(16), [{"bias_correction": {"images": 3}}, BiasCorrectionSettings()])
    assert (few.images, many.images) == (3, 16)
    assert few.settings == {"images": 3}
    assert str(many).startswith("bias_correction changed ")
    assert "SQNR of the output on its 16 images: " in str(many)


class Interrupted(Nudge):
    """Ctrl-C at the second block."""

    def repair_block(self, block: GraphBlock) -> None:
        if block.name == "blocks.1":
            raise KeyboardInterrupt


def test_an_interrupted_repair_leaves_the_model_as_it_was() -> None:
    model, images = quantized(), pixels(4)
    before, output = tensors(model), model(images)
    steps = [*make_steps(["bias_correction"]), Interrupted(NudgeSettings())]
    with pytest.raises(KeyboardInterrupt):
        vitquant.repair(model, images, steps)
    assert changed(before, tensors(model)) == set()
    assert torch.equal(model(images), output)


def test_an_interrupted_repair_undoes_the_calibration_too(toys: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPAIR_STEPS, "nudge", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(merged(SHIPPABLE, {"repair": ["nudge"]}))
    monkeypatch.setitem(REPAIR_STEPS, "nudge", Nudge)
    model = quantized(merged(SHIPPABLE, {"repair": ["nudge"]}))
    before = tensors(model)
    monkeypatch.setitem(REPAIR_STEPS, "nudge", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        vitquant.calibrate(model, 255 - pixels(8))
    assert changed(before, tensors(model)) == set()


def test_repair_needs_a_calibrated_model() -> None:
    model = quantized()
    fresh = QuantViT(*float_parts(model))
    with pytest.raises(LifecycleError, match="no statistics for"):
        vitquant.repair(fresh, pixels(2), ["bias_correction"])


def float_parts(model: QuantModel) -> tuple[Any, vitquant.ModelConfig, vitquant.Preprocessing]:
    return VisionTransformer(model.spec), vitquant.ModelConfig.from_dict(SHIPPABLE), model.preprocessing


class Zeros(RepairStep):
    """Makes all weights zero."""

    def repair_layer(self, layer: LayerInputs) -> None:
        layer.linear.revise(layer.params, codes=torch.zeros_like(layer.linear.weight_codes))


def test_a_step_that_makes_it_worse_warns() -> None:
    model = quantized()
    warning = r"^bias_correction changed 10 layers; SQNR of the output on its 4 images: .* after\. Fix: give the step"
    with pytest.warns(RepairWarning, match=warning):
        vitquant.repair(model, pixels(4), [Zeros(BiasCorrectionSettings())])


def test_without_steps_nothing_happens() -> None:
    model = quantized()
    before = tensors(model)
    assert vitquant.repair(model, pixels(2)) == ()
    assert vitquant.repair(model, pixels(2), []) == ()
    assert changed(before, tensors(model)) == set()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("bias_correction", r"steps: not a list of steps\. Got str, expected a list, such as \['bias_correction'\]"),
        (3, r"steps: not a list of steps\. Got int"),
        (["bias_corection"], r"^step: unknown repair step `bias_corection`, did you mean `bias_correction`"),
        (
            [{"bias_correction": {"images": 0}}],
            r"^step bias_correction\.images: value not allowed\. Got 0, expected an int",
        ),
        ([3], r"not a repair step\. Got 3, expected the name of one step"),
    ],
)
def test_bad_steps_are_refused(steps: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vitquant.repair(quantized(), pixels(2), steps)


def test_settings_and_steps_go_by_the_same_names() -> None:
    by_phase = {p: [n for n, s in REPAIR_SETTINGS.items() if s.phase is p] for p in Phase}
    assert list(REPAIR_STEPS) == by_phase[Phase.INTEGERS]
    assert list(REWRITES) == by_phase[Phase.FLOAT]
    assert by_phase[Phase.IMAGES] == [AugmentationSettings.name]
    assert all(name == settings.name for name, settings in REPAIR_SETTINGS.items())


EIGHT_BITS = QuantConfig()


class Mixer(Composite):
    """A family of another composition: tokens through ``down``, twice through ``shared``, and ``up``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.start = QAct(EIGHT_BITS, None, "start")
        self.body = Body()
        self.up = QuantLinear(nn.Linear(6, 3), None, EIGHT_BITS, "up")

    @entrance
    def forward(self, x: Tensor) -> Value:
        return self.up(self.body(self.start(x)))  # type: ignore[no-any-return]


class Body(Composite):
    def __init__(self) -> None:
        super().__init__()
        self.down = QuantLinear(nn.Linear(4, 6), None, EIGHT_BITS, "down")
        self.middle = QAct(EIGHT_BITS, nn.ReLU(), "middle")
        self.shared = QuantLinear(nn.Linear(6, 6), None, EIGHT_BITS, "shared")
        self.between = QAct(EIGHT_BITS, None, "between")
        self.unrounded = QuantLinear(nn.Linear(6, 6), None, None, "unrounded")
        self.last = QAct(EIGHT_BITS, None, "last")

    @entrance
    def forward(self, x: Value) -> Value:
        x = self.between(self.shared(self.middle(self.down(x))))
        return self.last(self.unrounded(self.shared(x)))  # type: ignore[no-any-return]


def batches(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(8, 5, 4, generator=generator)


def test_blocks_follow_from_the_composition() -> None:
    model, watch = calibrate_batches(Mixer(), batches(2)), Watch()
    x = torch.cat(list(batches(1)))
    repair_images(model, [watch], x)
    assert [name for name, *_ in watch.blocks] == ["start", "body", "up"]
    assert list(watch.layers) == ["down", "up"]


def test_shared_and_float_layers_stay_as_they_are() -> None:
    model = calibrate_batches(Mixer(), batches(2))
    (record,) = repair_images(model, make_steps(["bias_correction"]), torch.cat(list(batches(2))))
    assert record.changed == ("down", "up")


def test_a_scale_is_folded_into_the_layer_that_reads_it_in_a_later_block() -> None:
    class Wider(RepairStep):
        def repair_block(self, block: GraphBlock) -> None:
            for point in block.points:
                if point.name == "last":
                    params = point.require_params()
                    block.rescale(point, replace(params, scale=params.scale * 1.5))

    model = calibrate_batches(Mixer(), batches(2))
    old = model.up.bias_hat.clone()
    repair_images(model, [Wider(BiasCorrectionSettings())], torch.cat(list(batches(2))))
    unit = model.up.weight.require_params().scale * model.body.last.require_params().scale
    whole = model.up.bias_hat / unit
    assert not torch.equal(old, model.up.bias_hat)
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("build", [lambda: quantized(), lambda: quantized(num_classes=0, pool="avg")])
def test_the_record_is_about_the_output(build: Callable[[], QuantModel]) -> None:
    model, images = build(), pixels(16)
    (record,) = vitquant.repair(model, images, ["bias_correction"])
    assert record.sqnr_after_db > 10
    assert record.sqnr_before_db != record.sqnr_after_db
    assert record.seconds > 0
