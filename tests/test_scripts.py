"""The two tests that are also scripts run with vitquant's own dependencies only, as ``make demo`` installs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.job

TESTS = Path(__file__).parent
HIDDEN = (
    "import os, runpy, sys\n"
    "sys.modules.update(pytest=None, hypothesis=None)\n"
    "sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)


def run_without_test_tools(script: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDDEN, str(script)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.parametrize(("script", "layers"), [("test_quant_attn.py", 8), ("test_embed_to_attn.py", 10)])
def test_a_script_needs_no_test_tools(script: str, layers: int) -> None:
    done = run_without_test_tools(TESTS / script)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\w+ +\d+\.\d\d +\d+\.\d\d$", done.stdout, flags=re.MULTILINE)) == layers


def test_a_script_that_needs_them_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import pytest\n")
    done = run_without_test_tools(tmp_path / "script.py")
    assert (done.returncode, "pytest" in done.stderr) == (1, True)
