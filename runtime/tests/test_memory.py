"""Programs that are loaded from memory: the same as from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitquant
import vitquant_runtime
from saved_programs import expected, forced, images_for
from support.integer_models import quantized
from vitquant.program.storage import encode_program

PROGRAM = vitquant.compile(quantized(depth=1))
MANIFEST, TENSORS = encode_program(PROGRAM)


@pytest.mark.parametrize("isa", ["plain", "portable", None])
def test_logits(isa: str | None) -> None:
    images = images_for(PROGRAM)
    with forced(isa):
        runtime = vitquant_runtime.loads(MANIFEST, TENSORS, threads=2)
    assert np.array_equal(runtime(images), expected(PROGRAM, images))
    assert runtime.threads == 2
    assert runtime.metadata == PROGRAM.metadata
    assert vitquant_runtime.loads(MANIFEST, TENSORS).threads >= 1


def test_nothing_is_kept_of_the_bytes() -> None:
    manifest, tensors = bytes(bytearray(MANIFEST)), bytes(bytearray(TENSORS))
    runtime, images = vitquant_runtime.loads(manifest, tensors, threads=1), images_for(PROGRAM)
    del manifest, tensors
    assert np.array_equal(runtime(images), expected(PROGRAM, images))


REFUSED = {
    "nothing": (b"", b"", "not JSON"),
    "no tensors": (MANIFEST, b"", "the tensor file is not the one"),
    "a byte less": (MANIFEST, TENSORS[:-1], "the tensor file is not the one"),
    "a byte more": (MANIFEST, TENSORS + b"0", "the tensor file is not the one"),
    "another byte": (MANIFEST, TENSORS[:-1] + bytes([TENSORS[-1] ^ 1]), "the tensor file is not the one"),
    "another manifest": (MANIFEST.replace(b'"low": -128', b'"low": -127', 1), TENSORS, "changed after it was written"),
    "the wrong way round": (TENSORS, MANIFEST, "not JSON"),
    "too large": (MANIFEST + b" " * 2**22, TENSORS, "too large. Got .* bytes, expected at most 4194304"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    manifest, tensors, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^program\.json: .*{message}"):
        vitquant_runtime.loads(manifest, tensors)


@pytest.mark.parametrize("given", [None, 1, "text", bytearray(MANIFEST), Path()])
def test_what_is_not_bytes(given: Any) -> None:
    with pytest.raises(TypeError):
        vitquant_runtime.loads(given, TENSORS)
    with pytest.raises(TypeError):
        vitquant_runtime.loads(MANIFEST, given)


def test_threads_and_instruction_sets_are_checked() -> None:
    with pytest.raises(ValueError, match=r"threads: not a number of threads"):
        vitquant_runtime.loads(MANIFEST, TENSORS, threads=0)
    with forced("none such"), pytest.raises(ValueError, match="VITQUANT_ISA"):
        vitquant_runtime.loads(MANIFEST, TENSORS)
