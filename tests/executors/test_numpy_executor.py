"""The reference executor against an independent one, written in NumPy from the page that specifies the files."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vitquant
from support.integer_models import CONFIGS, pixels, quantized
from support.numpy_executor import NumpyExecutor
from support.random_programs import programs, tangled_programs
from vitquant.executors.reference import Reference
from vitquant.program import ops
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import encode_program
from vitquant.program.validate import validate

SPECS: list[dict[str, Any]] = [
    {"num_classes": 0},
    {"dist_token": True},
    {"reg_tokens": 3, "pos_covers_prefix": False},
    {"pool": "avg", "class_token": False},
    {"num_heads": 1, "depth": 1},
]

RANDOM = settings(max_examples=4 * settings().max_examples, suppress_health_check=list(HealthCheck))


def images_for(program: IntegerProgram, count: int = 2) -> Tensor:
    """Random images, a black one, a white one, and one that is black and white."""
    shape = program.image.shape
    noise = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    black = torch.zeros(1, *shape, dtype=torch.uint8)
    return torch.cat([noise, black, black + 255, (noise[:1] > 127).to(torch.uint8) * 255])


def differences(program: IntegerProgram, images: Tensor, varied: Counter[str] | None = None) -> list[str]:
    """Values at which the two executors differ, the logits among them.

    ``varied`` counts the operations whose codes are neither all the same nor all at the ends of their range.
    """
    independent = NumpyExecutor(*encode_program(program))
    names = [output.name for output in program.outputs]
    found = Reference(program, outputs=names).run(images, keep=list(program.values()))
    different: set[str] = set()
    for index, image in enumerate(images.numpy()):
        expected = {**independent.run(image), **independent.outputs(image)}
        different |= {name for name in expected if not np.array_equal(found[name][index].numpy(), expected[name])}
    if varied is None:
        return sorted(different)
    for op in program.operations:
        codes = np.unique(found[op.out.name].numpy())
        varied[op.kind] += bool(np.sum((codes > op.out.low) & (codes < op.out.high)) > 1)
    return sorted(different)


@pytest.mark.job
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_models(changes: dict[str, Any]) -> None:
    program = vitquant.compile(quantized(changes))
    assert differences(program, torch.cat([pixels(2, seed=1), images_for(program)[2:]])) == []


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_architectures(spec: dict[str, Any]) -> None:
    assert differences(vitquant.compile(quantized(**spec)), pixels(3, seed=2)) == []


@pytest.mark.job
def test_random_programs() -> None:
    varied: Counter[str] = Counter()

    @RANDOM
    @given(programs())
    def executors_agree(program: IntegerProgram) -> None:
        validate(program)
        assert differences(program, images_for(program), varied) == []

    executors_agree()
    assert min(varied[kind] for kind in ops.KINDS) >= 3, varied


@pytest.mark.job
@RANDOM
@given(tangled_programs())
def test_programs_whose_values_are_read_in_any_way(program: IntegerProgram) -> None:
    validate(program)
    assert differences(program, images_for(program)) == []


def test_the_comparison_has_teeth() -> None:
    """One more in the bias of one layer is seen there, and further on."""
    program = vitquant.compile(quantized())
    original = Reference(program).run(pixels(1), keep=["patch_embed"])["patch_embed"]
    manifest, tensors = encode_program(program)
    executor = NumpyExecutor(manifest, tensors)
    executor.arrays = {**executor.arrays, "patch_embed/bias": executor.arrays["patch_embed/bias"] + 2000}
    changed = executor.run(pixels(1)[0].numpy())["patch_embed"]
    assert not np.array_equal(changed, original[0].numpy())


def test_batches_and_threads() -> None:
    program = vitquant.compile(quantized())
    reference, images = Reference(program), pixels(16, seed=3)
    names = list(program.values())
    single = [reference.run(image[None], keep=names) for image in images]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for size in (1, 3, 16):
                batches = [reference.run(part, keep=names) for part in images.split(size)]
                for name in names:
                    assert torch.equal(torch.cat([b[name] for b in batches]), torch.cat([s[name] for s in single]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.job
def test_another_process(tmp_path: Path) -> None:
    program, images = vitquant.compile(quantized()), pixels(4, seed=4)
    vitquant.save_program(program, tmp_path)
    np.save(tmp_path / "images.npy", images.numpy())
    code = (
        "import sys, pathlib, numpy, torch, vitquant\nfolder = pathlib.Path(sys.argv[1])\n"
        "images = torch.from_numpy(numpy.load(folder / 'images.npy'))\n"
        "logits = vitquant.Reference(vitquant.load_program(folder))(images)\n"
        "numpy.save(folder / 'codes.npy', logits.codes.numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert np.array_equal(np.load(tmp_path / "codes.npy"), vitquant.Reference(program)(images).codes.numpy())


class NoFloats(TorchDispatchMode):
    """Sees every operation of torch, and notes those that read or make a tensor that is not of integers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen, self.floats = 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
        self.seen += 1
        if any(t.is_floating_point() or t.is_complex() for t in tensors):
            self.floats.append(str(func))
        return made


@pytest.mark.parametrize("form", ["row", "diffusion", "uniform", "log2"])
def test_no_tensor_is_floating_point(form: str) -> None:
    program = vitquant.compile(quantized({"intSoft": {"softmax": form}}, dist_token=form == "log2"))
    reference, images = Reference(program), pixels(2)
    with NoFloats() as mode:
        found = reference.run(images, keep=list(program.values()))
    assert mode.seen > 10 * len(program.operations)
    assert mode.floats == []
    assert not any(tensor.is_floating_point() for tensor in found.values())


def test_a_floating_point_tensor_would_be_seen() -> None:
    reference, images = Reference(vitquant.compile(quantized())), pixels(1)
    with NoFloats() as mode:
        reference(images).real()
    assert mode.floats == ["aten.clone.default", "aten.mul.Tensor"], "the scale that is handed out, and its use"
