"""Runs the integer programs that vitquant writes: uint8 images in, int32 logits out, equal to the reference to the bit.

    runtime = vitquant_runtime.load("out/program.json")
    logits = runtime(images)  # uint8 [B, C, h, w] -> int32 [B, K]
    real = logits * runtime.scale

``loads`` takes a program that is in memory; ``explain`` tells how one is executed, as does
``python -m vitquant_runtime --explain PROGRAM``. The environment variable ``VITQUANT_ISA`` forces an instruction set.
"""

from vitquant_runtime.runtime import Runtime, explain, load, loads
from vitquant_runtime.version import __version__

__all__ = ["Runtime", "__version__", "explain", "load", "loads"]
