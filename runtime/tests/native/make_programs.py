"""Writes programs for the native tests.

    PYTHONPATH=tests:runtime/tests python runtime/tests/native/make_programs.py FOLDER

Each of its folders holds a program, ``images.u8``, and ``output0.i32`` and so on, what they make of the images;
``seeds/`` holds both files of each program in one, for the fuzzing of the loader.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np

from block_programs import Sizes, block_program
from saved_programs import all_expected, images_for
from support.random_programs import STEPS, random_program, tangled_program
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import encode_program, save_program


def programs() -> dict[str, IntegerProgram]:
    found = {
        "wide": block_program(0, Sizes(grid=(5, 13), channels=192, heads=3, hidden=384, classes=100)),
        "odd": block_program(1, Sizes(grid=(7, 9), patch=3, prefix=5, channels=105, heads=5, hidden=77, classes=33)),
        "one_token": block_program(2, Sizes(grid=(1, 1), prefix=0, channels=16, heads=1, hidden=16, classes=1)),
    }
    for seed in range(24):
        random = np.random.default_rng(seed)
        steps = [STEPS[i] for i in random.integers(0, len(STEPS), random.integers(1, 5))]
        found[f"random{seed}"] = random_program(seed, steps)
        found[f"tangled{seed}"] = tangled_program(seed, 1 + seed)
    return found


def main(folder: Path) -> None:
    (folder / "seeds").mkdir(parents=True, exist_ok=True)
    for name, program in programs().items():
        save_program(program, folder / name)
        images = images_for(program)
        (folder / name / "images.u8").write_bytes(images.tobytes())
        for number, codes in enumerate(all_expected(program, images).values()):
            (folder / name / f"output{number}.i32").write_bytes(codes.astype("<i4").tobytes())
        manifest, tensors = encode_program(program)
        if len(tensors) < 2**17:
            (folder / "seeds" / name).write_bytes(struct.pack("<I", len(manifest)) + manifest + tensors)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
