"""Spoiled files of every kind are read or refused, in bounded time and memory: some here, many in the slow tests."""

import json
import os
import subprocess
import sys

import pytest

from support.documents import TESTS

pytestmark = pytest.mark.job

DOORS = ("yaml", "saved model", "program", "run", "npz", "pictures", "pth", "safetensors")
SCRIPT = TESTS / "fuzz" / "fuzz.py"
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
}


def fuzz(door: str, count: int, seed: int) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), door, "--count", str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout, f"the process itself ended: {done.returncode} {done.stderr[-2000:]}"
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("door", DOORS)
def test_some_spoiled_files(door: str) -> None:
    found = fuzz(door, count=150, seed=0)
    assert found["faults"] == {}
    assert int(str(found["refused"])) > 15, "the files were spoiled"


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_many_spoiled_files(door: str) -> None:
    found = fuzz(door, count=10_000, seed=1_000)
    assert found["faults"] == {}
