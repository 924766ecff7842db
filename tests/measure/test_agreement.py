"""The integer program against the simulation: what was measured is what ships, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitquant
from support.integer_models import ARCHITECTURES, CONFIGS, disagreements, pixels, quantized
from vitquant.executors.reference import Reference


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_simulation_and_integers_are_equal(changes: dict[str, Any]) -> None:
    model = quantized(changes)
    program = vitquant.compile(model)
    images = pixels(7, seed=1)
    assert disagreements(model, program, images) == {}
    simulated = model(model.preprocessing.normalize(images))
    integer = Reference(program)(images).real()
    torch.testing.assert_close(integer, simulated, rtol=1e-4, atol=1e-4 * float(simulated.abs().max()))


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
@torch.no_grad()
def test_architectures(spec: dict[str, Any]) -> None:
    model = quantized(**spec)
    program = vitquant.compile(model)
    images = pixels(5, seed=2)
    assert disagreements(model, program, images) == {}
    simulated = model(model.preprocessing.normalize(images))
    integer = Reference(program)(images).real()
    torch.testing.assert_close(integer, simulated, rtol=1e-4, atol=1e-4 * float(simulated.abs().max()))


def test_a_difference_would_be_seen() -> None:
    """The comparison has teeth: other weights, other codes."""
    model, other = quantized(), quantized(seed=1)
    assert len(disagreements(model, vitquant.compile(other), pixels(3))) > 10
