"""A point's life: observe, finish, round."""

import pytest
import torch
from torch import Tensor

from vitquant.config import QuantConfig
from vitquant.config.quant_config import BitType
from vitquant.errors import ConfigError, LifecycleError, ModelError, NumericsError
from vitquant.layers import IntSoftmax, Mode, Point, QAct, QuantLinear, QuantResidual, only, points_of, set_mode
from vitquant.numerics.affine import fake_quantize, params_from_range
from vitquant.numerics.quantized import real
from vitquant.observers.layout import ChannelLayout


def config(mode: str = "layer_wise", bits: int = 8, signed: bool = True, **fields: object) -> QuantConfig:
    return QuantConfig(calibration_mode=mode, bit_type=BitType(bits=bits, signed=signed), **fields)  # type: ignore[arg-type]


def calibrated(point: Point, *tensors: Tensor) -> Point:
    point.set_mode(Mode.CALIBRATE)
    for x in tensors:
        point.observe(x)
    point.finish()
    point.set_mode(Mode.QUANTIZED)
    return point


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_specifications_signature() -> None:
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    act = QAct(quant_config=config(), act_module=None, layer_name="attn_q_out")
    assert (act.name, act.mode, act.params) == ("attn_q_out", Mode.FP32, None)
    assert act(x) is x
    act.set_mode(Mode.CALIBRATE)
    assert act(x) is x
    act.finish()
    act.set_mode(Mode.QUANTIZED)
    assert act.require_params().scale.item() == pytest.approx(2 / 127)
    torch.testing.assert_close(act(x), torch.tensor([[-64 * 2 / 127, 0, 2]]))


def test_the_activation_function_comes_first() -> None:
    act = QAct(quant_config=config(signed=False), act_module=torch.nn.ReLU(), layer_name="mlp_gelu")
    act.set_mode(Mode.CALIBRATE)
    assert act(torch.tensor([-5.0, 2.55])).tolist() == [0, pytest.approx(2.55)]
    act.finish()
    act.set_mode(Mode.QUANTIZED)
    assert act(torch.tensor([-5.0, 1.004])).tolist() == pytest.approx([0, 1.0])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("mode", "dims"), [("layer_wise", (0, 1, 2)), ("channel_wise", (0, 1)), ("head_wise", None)])
def test_the_grid_is_that_of_the_extremes(mode: str, dims: tuple[int, ...] | None, signed: bool) -> None:
    batches = [randn(2, 5, 8, seed=seed) * torch.arange(1, 9) for seed in (0, 1)]
    point = calibrated(QAct(config(mode, signed=signed), layer_name="attn_q_out", head_dim=4), *batches)
    x = torch.cat(batches)
    if dims is None:
        heads = x.reshape(-1, 2, 4)
        low, high = heads.amin((0, 2)).repeat_interleave(4), heads.amax((0, 2)).repeat_interleave(4)
    else:
        low, high = x.amin(dims), x.amax(dims)
    expected = params_from_range(low, high, bits=8, signed=signed)
    params = point.require_params()
    assert torch.equal(params.scale, expected.scale)
    assert torch.equal(params.zero_point, expected.zero_point)
    assert torch.equal(point(x), fake_quantize(x, expected))
    assert point.shape == (5, 8)


@pytest.mark.parametrize("name", ["attn_kv_out", "blocks.3.attn_kv_out", "intSoft", "blocks.0.intSoft"])
@pytest.mark.parametrize("mode", ["channel_wise", "head_wise"])
def test_the_channel_of_scores_is_the_head(name: str, mode: str) -> None:
    point = calibrated(QAct(config(mode), layer_name=name), randn(2, 3, 7, 7) * torch.tensor([1, 2, 4])[:, None, None])
    assert point.layout == ChannelLayout(1)
    assert point.require_params().scale.shape == (3, 1, 1)
    point(randn(5, 3, 11, 11))  # another number of tokens


def test_observers_are_the_configs() -> None:
    for name in ("MinmaxObserver", "PercentileObserver", "KLObserver", "OmseObserver"):
        point = QAct(config(observer_type=name, percentile_alpha=0.9), layer_name="residual1")
        point.set_mode(Mode.CALIBRATE)
        assert type(point.observer).__name__ == name
    x = torch.cat([torch.linspace(-1, 1, 1001), torch.tensor([100.0])])[None]
    clipped = calibrated(QAct(config(observer_type="PercentileObserver", percentile_alpha=0.9), layer_name="norm1"), x)
    assert clipped.require_params().scale.item() == pytest.approx(0.8 / 127, rel=0.02)


def test_power_of_two() -> None:
    point = calibrated(
        QAct(config(quantization_method="power_of_two"), layer_name="norm1"), torch.tensor([[3.0, -1.0]])
    )
    assert point.require_params().scale.item() == 2**-5  # 3 / 127 = 0.0236, next 1 / 32


def test_channels_without_range_are_counted() -> None:
    x = randn(4, 6)
    x[:, 1] = 0
    x[:, 4] = 1e-42
    point = calibrated(QAct(config("channel_wise"), layer_name="norm1"), x)
    assert point.no_range == 2
    assert point(x)[:, [1, 4]].abs().sum() == 0


@pytest.mark.parametrize("quant_config", [None, config(output_quant_enable=False)])
def test_an_inactive_point_lets_everything_pass(quant_config: QuantConfig | None) -> None:
    act, soft = QAct(quant_config, layer_name="norm1"), IntSoftmax(quant_config, layer_name="intSoft")
    residual = QuantResidual("residual1", quant_config)
    x = randn(2, 2, 3, 3) * 1e3
    for mode in Mode:
        for point in (act, soft, residual):
            point.set_mode(mode)
            assert not point.active
            assert point.acting is None
        assert act(x) is x
        assert torch.equal(soft(x), x.softmax(-1))
        assert torch.equal(residual(x, x), x + x)
        act.finish()
        assert act.params is None


def test_rounding_without_statistics_is_refused() -> None:
    point = QAct(config(), layer_name="blocks.3.attn_kv_out")
    point.set_mode(Mode.QUANTIZED)
    with pytest.raises(LifecycleError, match=r"no statistics for blocks\.3\.attn_kv_out\..*Fix: call vitquant\.calibr"):
        point(randn(1, 2, 3, 3))
    point.set_mode(Mode.CALIBRATE)
    with pytest.raises(LifecycleError, match=r"no statistics for blocks\.3\.attn_kv_out"):
        point.finish()


def test_statistics_are_used_once_and_begin_afresh() -> None:
    point = calibrated(QAct(config(), layer_name="norm1"), torch.tensor([[100.0]]))
    assert point.observer is None
    with pytest.raises(LifecycleError, match="statistics of norm1 were used up"):
        point.finish()
    calibrated(point, torch.tensor([[1.27]]))
    assert point.require_params().scale.item() == pytest.approx(0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(value: float) -> None:
    x = randn(4, 3, 8)
    x[2, 1, 5] = value
    point = QAct(config(), layer_name="blocks.1.mlp_gelu")
    point.set_mode(Mode.CALIBRATE)
    point.observe(randn(4, 3, 8))
    with pytest.raises(NumericsError, match=r"^blocks\.1\.mlp_gelu: .*first at index 2 of"):
        point.observe(x)


def test_head_wise_needs_the_width_of_a_head() -> None:
    with pytest.raises(ConfigError, match="head_wise needs to know how wide a head is"):
        QAct(config("head_wise"), layer_name="head.output")
    QAct(config("head_wise"), layer_name="attn_kv_out")  # here the dimension itself is the head
    point = QAct(config("head_wise"), layer_name="norm1", head_dim=5)
    point.set_mode(Mode.CALIBRATE)
    with pytest.raises(ModelError, match="groups of 5"):
        point.observe(randn(1, 2, 8))


def test_the_hook_sees_what_came_and_what_went() -> None:
    point = calibrated(QAct(config(bits=2), layer_name="norm1"), torch.tensor([[1.0]]))
    seen: list[tuple[str, Tensor, Tensor]] = []
    point.hook = lambda p, before, after: seen.append((p.name, before(), real(after)))
    x = torch.tensor([[0.4, 0.6]])
    out = point(x)
    assert len(seen) == 1
    assert seen[0][0] == "norm1"
    assert seen[0][1] is x
    assert torch.equal(seen[0][2], out)
    assert out.tolist() == [[0, 1]]


def test_a_grid_follows_its_module() -> None:
    point = calibrated(QAct(config("channel_wise"), layer_name="norm1"), randn(3, 4))
    before = point.require_params()
    point.double()
    after = point.require_params()
    assert after.scale.dtype == torch.float64
    assert torch.equal(after.scale, before.scale.double())
    assert (after.qmin, after.qmax) == (-128, 127)


def test_only_some_points_round_and_all_modes_return() -> None:
    linear = QuantLinear(torch.nn.Linear(4, 4), config(), config(), "head")
    module = torch.nn.Sequential(QAct(config(), layer_name="final_norm"), linear)
    assert [p.name for p in points_of(module)] == ["final_norm", "head.weight", "head.output"]
    set_mode(module, Mode.CALIBRATE)
    module(randn(3, 4))
    for point in points_of(module)[::2]:
        point.finish()
    set_mode(module, Mode.QUANTIZED)
    linear.output.set_mode(Mode.FP32)

    def modes() -> list[Mode]:
        return [p.mode for p in points_of(module)]

    with only([linear.weight], module):
        assert modes() == [Mode.FP32, Mode.QUANTIZED, Mode.FP32]
    assert modes() == [Mode.QUANTIZED, Mode.QUANTIZED, Mode.FP32]
    with pytest.raises(LifecycleError), only([linear.output], module):
        linear.output.finish()  # its statistics are gone
    assert modes() == [Mode.QUANTIZED, Mode.QUANTIZED, Mode.FP32]


def test_a_margin_widens_the_range_around_its_middle() -> None:
    for signed, low, high in ((False, -2.0, 8.0), (True, -2.0, 8.0)):
        plain = config("layer_wise", 8, signed)
        point = calibrated(QAct(plain.model_copy(update={"range_margin": 1.5})), torch.tensor([[low, high]]))
        params = point.require_params()  # the range is -4.5 to 10.5
        assert params.scale.item() == pytest.approx(10.5 / 127 if signed else 15 / 255)
        assert params.zero_point.item() == (0 if signed else round(4.5 * 255 / 15))
        assert calibrated(QAct(plain), torch.tensor([[low, high]])).require_params().scale < params.scale


def test_residual_adds_codes() -> None:
    point = calibrated(QuantResidual("residual1", config(bits=4)), torch.tensor([[7.0, -7.0]]))  # scale 1
    x, y = torch.tensor([[0.4, 1.6, 6.0, -6.0, 2.5]]), torch.tensor([[0.4, 1.6, 4.0, -6.0, 0.5]])
    assert point(x, y).tolist() == [[0, 4, 7, -8, 2]]  # the sums themselves would round to 1, 3, 7, -8, 3
    point = calibrated(QuantResidual("residual1", config(bits=4, signed=False)), torch.tensor([[-5.0, 10.0]]))
    assert point(x, y).tolist() == [[0, 4, 10, -5, 2]]


def test_residual_observes_the_sum() -> None:
    residual = QuantResidual("residual2", config())
    residual.set_mode(Mode.CALIBRATE)
    assert residual(torch.tensor([[1.0]]), torch.tensor([[1.54]])).tolist() == [[pytest.approx(2.54)]]
    residual.finish()
    assert residual.require_params().scale.item() == pytest.approx(0.02)


def test_repr_names_the_settings() -> None:
    assert "norm1: uint4 channel_wise" in repr(QAct(config("channel_wise", 4, False), layer_name="norm1"))
    assert "norm1: float" in repr(QAct(None, layer_name="norm1"))
