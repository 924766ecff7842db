"""Kill a writer 300 times at random moments, and look at the folder each time. Prints what was found, as JSON.

A process of its own, since it forks a child for each kill, which is quick as long as torch is not loaded.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from vitquant.files import write_folder

NAMES = ("model.safetensors", "manifest.json", "points.csv", "summary.json")


def run_files(letter: str) -> dict[str, bytes | str]:
    """The files of a run: each consists of the run's letter."""
    return {name: letter * (40_000 if name.endswith("safetensors") else 500) for name in NAMES}


def letters(folder: Path) -> set[str]:
    """Which runs the files of a folder are of; a file that was cut off counts as none of them."""
    found = set()
    for name in NAMES:
        text = (folder / name).read_text()
        whole = len(text) == len(run_files("A")[name]) and len(set(text)) == 1
        found.add(text[0] if whole else "part of a file")
    return found


def killed(out: Path, moment: float, rounds: int) -> None:
    """Fork a child that writes runs B and C in turns without end, and kill it after some rounds, within the next one.

    ``moment`` is the share of a round, by the clock of the round before, after which it is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            for letter in itertools.cycle("BC"):
                write_folder(out, run_files(letter))
                os.write(writing, b"!")
        finally:
            os._exit(1)
    for _ in range(rounds):
        start = time.perf_counter()
        os.read(reading, 1)
    time.sleep(moment * (time.perf_counter() - start))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (reading, writing):
        os.close(end)


def main(out: Path) -> None:
    moments = random.Random(0)
    found = []
    for number in range(300):
        killed(out, moments.random(), 1 + number % 3)
        found.append("".join(sorted(letters(out))))
    print(json.dumps({letter: found.count(letter) for letter in set(found)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
