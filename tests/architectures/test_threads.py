"""One model in several threads: equal to the bit to one thread, or refused."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import vitquant
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.data import Preprocessing
from vitquant.errors import LifecycleError
from vitquant.layers import Mode, points_of
from vitquant.measure.agreement import divergences

PREPROCESSING = Preprocessing((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
ROUNDS = 3


def pixels(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture
def model(make_vit: Callable[..., VisionTransformer]) -> vitquant.QuantModel:
    config = vitquant.load_config_from_yaml("vit_int8.yaml")
    config = {**config, "overrides": {"blocks.0.mlp_gelu": {"enable_profiler": True}}}
    return vitquant.quantize(FloatModel("s", make_vit(), PREPROCESSING), config, calibration=pixels())


def in_threads(*jobs: Callable[[], Any]) -> list[list[Any]]:
    """Each job over and over in a thread of its own, all started together."""
    barrier = threading.Barrier(len(jobs))

    def work(job: Callable[[], Any]) -> list[Any]:
        barrier.wait()
        return [job() for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(work, job) for job in jobs]]


def test_figures_are_those_of_one_thread(model: vitquant.QuantModel) -> None:
    x, program = PREPROCESSING.normalize(pixels(1)), vitquant.compile(model)
    reference = vitquant.Reference(program)

    def profile() -> list[Any]:
        found = vitquant.profile(model, pixels(2))
        metrics = next(p.metrics for p in found.points if p.name == "blocks.0.mlp_gelu")
        assert metrics is not None
        assert 0 < metrics.seconds < 1
        return [(p.name, p.sqnr_isolated_db, p.sqnr_cumulative_db) for p in found.points]

    jobs: list[Callable[[], Any]] = [
        lambda: vitquant.evaluate(model, pixels(3)),
        profile,
        lambda: model(x).tolist(),
        lambda: divergences(model, program, reference.run, pixels(4)),
        lambda: reference(pixels(5)).codes.tolist(),
    ]
    wanted = [job() for job in jobs]
    for results, expected in zip(in_threads(*jobs), wanted, strict=True):
        assert all(result == expected for result in results)
    assert {point.mode for point in points_of(model)} == {Mode.QUANTIZED}


def test_many_forwards_at_once_after_a_conversion(model: vitquant.QuantModel) -> None:
    """The forms that layers keep are made anew, by all threads at once."""
    x = PREPROCESSING.normalize(pixels(1))
    wanted = model(x)
    model.double().float()
    assert all(torch.equal(y, wanted) for ys in in_threads(*[lambda: model(x)] * 4) for y in ys)


def test_a_forward_keeps_the_mode_that_it_began_with(model: vitquant.QuantModel) -> None:
    x = PREPROCESSING.normalize(pixels(1))
    rounded = model(x)
    model.set_mode(Mode.FP32)
    exact = model(x)
    halfway: Any = model.blocks[0].residual1

    def switch(*_: object) -> None:
        thread = threading.Thread(target=model.set_mode, args=(Mode.QUANTIZED,))
        thread.start()
        thread.join()

    halfway.hook = switch
    assert torch.equal(model(x), exact)
    halfway.hook = None
    assert torch.equal(model(x), rounded)


def test_modes_are_switched_together(model: vitquant.QuantModel) -> None:
    x = PREPROCESSING.normalize(pixels(1))
    rounded = model(x)
    model.set_mode(Mode.FP32)
    exact = model(x)

    def toggle() -> None:
        for mode in (Mode.QUANTIZED, Mode.FP32):
            model.set_mode(mode)

    for ys in in_threads(toggle, lambda: model(x), lambda: model(x))[1:]:
        assert all(torch.equal(y, rounded) or torch.equal(y, exact) for y in ys)


def refusals(action: Callable[[], object]) -> str:
    with ThreadPoolExecutor(1) as pool, pytest.raises(LifecycleError) as caught:
        pool.submit(action).result()
    return str(caught.value)


def test_nothing_computes_with_a_model_that_is_calibrated_meanwhile(model: vitquant.QuantModel) -> None:
    x = PREPROCESSING.normalize(pixels(1))
    wanted = model(x)
    program = vitquant.compile(model)
    actions: list[Callable[[], object]] = [
        lambda: model(x),
        lambda: model.blocks[0](torch.zeros(1, 5, 16)),
        lambda: vitquant.evaluate(model, pixels()),
        lambda: vitquant.profile(model, pixels()),
        lambda: vitquant.calibrate(model, pixels()),
        lambda: vitquant.compile(model),
        lambda: divergences(model, program, vitquant.Reference(program).run, pixels()),
        lambda: model.set_mode(Mode.FP32),
        lambda: model.double(),
    ]

    def images() -> Iterator[Tensor]:
        yield pixels()
        for action in actions:
            assert "the model is being calibrated or converted in another thread" in refusals(action)

    vitquant.calibrate(model, images())
    assert torch.equal(model(x), wanted), "the calibration was not disturbed"


def test_a_model_in_use_is_not_changed(model: vitquant.QuantModel) -> None:
    actions: list[Callable[[], object]] = [lambda: vitquant.calibrate(model, pixels(7)), lambda: model.double()]
    wanted = vitquant.evaluate(model, [pixels(1), pixels(2)])

    def images() -> Iterator[Tensor]:
        yield pixels(1)
        for action in actions:
            assert "the model cannot be changed while another thread computes with it" in refusals(action)
        yield pixels(2)

    assert vitquant.evaluate(model, images()) == wanted
    vitquant.calibrate(model, pixels(7))


def test_other_models_are_free(model: vitquant.QuantModel, make_vit: Callable[..., VisionTransformer]) -> None:
    other = vitquant.prepare(FloatModel("s", make_vit(), PREPROCESSING), "vit_int8.yaml")

    def images() -> Iterator[Tensor]:
        yield pixels()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(vitquant.calibrate, other, pixels()).result()

    vitquant.evaluate(model, images())
    assert other.mode is Mode.QUANTIZED


@pytest.mark.parametrize("step", [vitquant.evaluate, vitquant.profile, vitquant.calibrate])
@pytest.mark.parametrize("mode", [Mode.FP32, Mode.QUANTIZED])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_loader_that_fails_leaves_the_model_as_it_was(
    failure: type[BaseException], mode: Mode, step: Callable[..., object], model: vitquant.QuantModel
) -> None:
    x = PREPROCESSING.normalize(pixels(1))
    wanted, tensors = model(x), [t.clone() for t in model.buffers()]
    model.set_mode(mode)

    def images() -> Iterator[Tensor]:
        yield 255 - pixels(1)
        raise failure("the loader broke")

    with pytest.raises(failure):
        step(model, images(), batch_size=4)
    assert model.mode is mode
    assert all(torch.equal(a, b) for a, b in zip(tensors, model.buffers(), strict=True))
    assert all(point.observer is None for point in points_of(model))
    model.set_mode(Mode.QUANTIZED)
    assert torch.equal(model(x), wanted)
    vitquant.calibrate(model, pixels())
    assert torch.equal(model(x), wanted)
