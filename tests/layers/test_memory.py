"""Running out of memory names the layer, the batch and the need; real allocations fail here."""

import subprocess
import sys

import pytest
import torch

from vitquant.errors import OutOfMemoryError
from vitquant.layers.memory import memory_named, need, out_of_memory

SCRIPT = """
import resource, sys
import torch
import vitquant

torch.set_num_threads(1)
model = vitquant.load_fashion()
images, _, tests, _ = vitquant.load_fashion_images()
quantized = vitquant.quantize(model, "vit_int8.yaml", calibration=images[:8, None])
program = vitquant.compile(quantized)
reference = vitquant.Reference(program)
pixels = tests[:1, None].expand(4096, -1, -1, -1)
before = quantized(model.preprocessing.normalize(tests[:2, None]))
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room} * 2**20, resource.RLIM_INFINITY))
steps = {{
    "forward": lambda: quantized(model.preprocessing.normalize(pixels)),
    "evaluate": lambda: vitquant.evaluate(quantized, pixels, batch_size=4096),
    "profile": lambda: vitquant.profile(quantized, pixels, batch_size=4096),
    "calibrate": lambda: vitquant.calibrate(quantized, pixels, batch_size=4096),
    "reference": lambda: reference(pixels),
}}
for name, step in steps.items():
    try:
        step()
    except vitquant.VitquantError as error:
        print(name, type(error).__name__, error.exit_code, error, sep="|")
    else:
        print(name, "nothing was raised")
assert torch.equal(quantized(model.preprocessing.normalize(tests[:2, None])), before)
"""


@pytest.mark.job
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space by the means of Linux")
@pytest.mark.parametrize("room", [60, 250])
def test_every_step_says_where_memory_ran_out(room: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(room=room)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["forward", "evaluate", "profile", "calibrate", "reference"]
    for _, kind, code, message in lines:
        assert (kind, code) == ("OutOfMemoryError", "4")
        where, _, rest = message.partition(": ")
        assert rest.startswith("out of memory. Got a request for ")
        assert "for a batch of 4096" in rest
        assert rest.endswith("Fix: take a smaller batch than 4096: --batch-size, or batch_size= in Python.")
        assert where.startswith(("images", "patch_embed", "pos_embed", "blocks.0.", "patches"))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity", "a request for 2.15 GB"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.", "a request for 4.1 kB"),
        ("Unable to allocate 1.00 TiB for an array with shape", "a request for 1.1 TB"),
        ("out of memory", "a request for about 400 bytes"),
    ],
)
def test_what_was_asked_for(message: str, told: str) -> None:
    assert need(RuntimeError(message), torch.zeros(100)) == told


def test_one_image_cannot_be_made_fewer() -> None:
    error = out_of_memory(MemoryError(), "head", torch.zeros(1, 4))
    assert str(error) == (
        "head: out of memory. Got a request for about 16 bytes for a batch of 1. "
        "Fix: take a smaller img_size, or a machine with more memory."
    )


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_named("head"):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(OutOfMemoryError, match="head: out of memory"), memory_named("head"):
        raise MemoryError
