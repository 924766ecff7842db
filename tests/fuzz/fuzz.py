"""Feed spoiled files to one door, in a process of its own that may take a bounded time and memory for each.

    PYTHONPATH=tests python tests/fuzz/fuzz.py pth --count 10000 --seed 7

Every file is read, or refused by a ``VitquantError``. Anything else is printed with the seed that gives it again:
another exception, more than 5 seconds, more than 1 GB beyond what the process has, or a model accepted with NaN in it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import tempfile
import warnings
from pathlib import Path
from types import FrameType

import torch

from support.fuzz_doors import DOORS, Door, good_ones_are_read, write
from vitquant.errors import VitquantError

SECONDS = 5
BYTES = 2**30


class Hang(BaseException):
    """A file took too long."""


def main() -> int:
    """Run and report; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("door", choices=DOORS)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first file; the next ones count on")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    door = DOORS[args.door]
    good_ones_are_read(door)
    limit_memory()
    signal.signal(signal.SIGALRM, too_long)
    found = {"read": 0, "refused": 0}
    faults = {}
    originals = door.originals()
    for seed in range(args.seed, args.seed + args.count):
        outcome = outcome_of(door, originals, seed)
        if outcome in found:
            found[outcome] += 1
        else:
            faults[seed] = outcome
    print(json.dumps(found | {"faults": faults}))
    return bool(faults)


def outcome_of(door: Door, originals: list[dict[str, bytes]], seed: int) -> str:
    """``read``, ``refused``, or what went wrong."""
    rng = random.Random(seed)
    try:
        files = rng.choice(door.changes)(rng.choice(originals), rng)
    except (ValueError, TypeError, OverflowError, UnicodeError):  # nothing that a file can hold
        return "refused"
    with tempfile.TemporaryDirectory() as folder:
        write(files, Path(folder))
        signal.alarm(SECONDS)
        try:
            door.read(Path(folder))
            return "read"
        except VitquantError as error:
            if "memory" in type(error).__name__.lower():
                return f"took more than {BYTES / 1e9:.1f} GB: {error}"
            text = str(error)
            return "refused" if text.isprintable() or "\n" in text else f"an unprintable message: {text!a}"
        except (Exception, Hang) as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            signal.alarm(0)


def limit_memory() -> None:
    """No more than a gigabyte beyond what is taken now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def too_long(number: int, frame: FrameType | None) -> None:
    """What the alarm does."""
    raise Hang(f"took more than {SECONDS} s")


if __name__ == "__main__":
    raise SystemExit(main())
