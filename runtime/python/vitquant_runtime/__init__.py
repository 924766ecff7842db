"""Runs the integer programs that vitquant writes: uint8 images in, int32 outputs, equal to the reference to the bit.

    runtime = vitquant_runtime.load("out/program.json")
    logits = runtime(images)  # uint8 [B, C, h, w] -> int32 [B, K]
    real = logits * runtime.scale

A program may have more outputs than its first, which is the one that is computed by default:

    runtime = vitquant_runtime.load("out/program.json", outputs=["logits", "tokens"])
    tokens = runtime.run(images)["tokens"]  # int32 [B, N, C]
    real = tokens * runtime.outputs["tokens"].scale

``loads`` takes a program that is in memory; ``explain`` tells how one is executed, as does
``python -m vitquant_runtime --explain PROGRAM``. The environment variable ``VITQUANT_ISA`` forces an instruction set.
"""

from vitquant_runtime.runtime import Output, Runtime, explain, load, loads
from vitquant_runtime.version import __version__

__all__ = ["Output", "Runtime", "__version__", "explain", "load", "loads"]
