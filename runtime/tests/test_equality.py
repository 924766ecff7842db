"""The runtime equals the reference, bit for bit, whatever the program, the instruction set and the threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import vitquant
from block_programs import Sizes, block_program
from saved_programs import available, disagreements, expected, images_for, load
from support.integer_models import quantized
from support.random_programs import programs
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import save_program
from vitquant.program.validate import validate

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "no head": ({}, {"num_classes": 0}),
    "registers, average": ({}, {"reg_tokens": 3, "pool": "avg", "class_token": False, "pos_covers_prefix": False}),
    "distilled": ({}, {"dist_token": True}),
    "one head, one block": ({}, {"num_heads": 1, "depth": 1}),
    "odd sizes": ({}, {"embed_dim": 21, "num_heads": 3, "mlp_hidden": 35, "num_classes": 11}),
    "one token": ({}, {"patch_size": (16, 16), "class_token": False, "pool": "avg"}),
    "wider than a panel": ({}, {"embed_dim": 192, "num_heads": 3, "mlp_hidden": 320, "num_classes": 70}),
    "16-bit GELU input": ({"mlp_fc1": {"output": {"bit_type": {"bits": 16}}}}, {}),
    "diffusion": ({"intSoft": {"softmax": "diffusion"}}, {}),
    "diffusion of 4 bits": ({"intSoft": {"softmax": "diffusion", "bit_type": {"bits": 4}}}, {}),
    "diffusion of 9 bits": ({"intSoft": {"softmax": "diffusion", "bit_type": {"bits": 9}}}, {}),
    "uniform softmax": ({"intSoft": {"softmax": "uniform"}}, {}),
    "log2 softmax": ({"intSoft": {"softmax": "log2", "bit_type": {"bits": 4}}}, {}),
    "6-bit weights": ({"defaults": {"weight": {"bit_type": {"bits": 6}}}}, {}),
}


@pytest.fixture(scope="module")
def isas(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("any")
    save_program(vitquant.compile(quantized(depth=1)), folder)
    found = available(folder)
    assert found[:2] == ["plain", "portable"]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path, isas: list[str]) -> None:
    changes, spec = MODELS[name]
    program = vitquant.compile(quantized(changes, **spec))
    assert not disagreements(program, images_for(program, 4), tmp_path, isas, threads=(1, 2, 3))


def test_the_embedded_model_on_its_test_images(tmp_path: Path, isas: list[str]) -> None:
    calibration, _, test, _ = vitquant.load_fashion_images()
    model = vitquant.quantize(vitquant.load_fashion(), "vit_int8.yaml", calibration=calibration[:64])
    program, images = vitquant.compile(model), test[:, None].numpy()
    save_program(program, tmp_path)
    wanted = np.concatenate([expected(program, batch) for batch in np.array_split(images, 20)])
    assert len(images) == 2000
    for isa in isas[1:]:  # all but the plain one, which takes minutes
        for threads in (1, 2, 3) if isa != "portable" else (2,):
            np.testing.assert_array_equal(load(tmp_path, isa, threads)(images), wanted, err_msg=f"{isa}, {threads}")
    np.testing.assert_array_equal(load(tmp_path, "plain")(images[:50]), wanted[:50])


@settings(suppress_health_check=list(HealthCheck))
@given(program=programs())
def test_random_programs(program: IntegerProgram, tmp_path: Path, isas: list[str]) -> None:
    assert not disagreements(program, images_for(program), tmp_path, isas)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(),
        Sizes(grid=(1, 1), prefix=0, channels=16, heads=1, hidden=16, classes=1),
        Sizes(grid=(5, 13), channels=192, heads=3, hidden=384, classes=100, depth=2),
        Sizes(grid=(7, 9), patch=3, prefix=5, channels=105, heads=5, hidden=77, classes=33),
    ],
    ids=str,
)
def test_blocks(sizes: Sizes, seed: int, tmp_path: Path, isas: list[str]) -> None:
    program = block_program(seed, sizes)
    validate(program)
    assert not disagreements(program, images_for(program), tmp_path, isas, threads=(1, 2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_many_tokens(seed: int, tmp_path: Path, isas: list[str]) -> None:
    """1,370 of them, in a model of few channels."""
    program = block_program(seed, Sizes(grid=(37, 37), channels=64, heads=2, hidden=64))
    quick = [isa for isa in isas if isa not in ("plain", "portable")] or ["portable"]
    assert not disagreements(program, images_for(program, 1)[:1], tmp_path, quick, threads=(2,))


def test_batches(tmp_path: Path) -> None:
    """Of any size, in any order, on the same object: what one call leaves behind does not reach the next."""
    program = vitquant.compile(quantized())
    save_program(program, tmp_path)
    images = images_for(program, 40)
    wanted = expected(program, images)
    runtime = load(tmp_path, threads=2)
    for count in (1, 7, 43, 2, 43, 1):
        assert np.array_equal(runtime(images[:count]), wanted[:count])
    assert runtime(images[:0]).shape == (0, wanted.shape[1])


def test_real_logits(tmp_path: Path) -> None:
    program = vitquant.compile(quantized())
    save_program(program, tmp_path)
    runtime, images = load(tmp_path), images_for(program)
    wanted = vitquant.Reference(program)(torch.from_numpy(images)).real().numpy()
    np.testing.assert_allclose(runtime(images) * runtime.scale, wanted, rtol=1e-6)
