"""Start-up: ``import vitquant`` beyond ``import torch``, and ``vitquant --help``, which must not import torch."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from benchmarks.model import arguments
from benchmarks.report import Report
from benchmarks.timing import taking_turns

HELP = "import sys; sys.argv = ['vitquant', '--help']; from vitquant.cli.main import main; main()"
HELP_IS_LIGHT = f"""
import atexit, sys
atexit.register(lambda: print('torch imported:', 'torch' in sys.modules, file=sys.stderr))
{HELP}
"""


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def imports_torch() -> bool:
    done = subprocess.run([sys.executable, "-c", HELP_IS_LIGHT], capture_output=True, text=True)
    return "torch imported: True" in done.stderr


def main() -> None:
    parser = arguments(__doc__, photos=False)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    code = {
        "python alone": "pass",
        "import torch": "import torch",
        "import vitquant": "import torch, vitquant",
        "everything of vitquant.workflows.quantize": "import torch, vitquant.workflows.quantize",
        "vitquant --help": HELP,
    }
    works = {name: (lambda text=text: python(text)) for name, text in code.items()}
    taking_turns(works, 1)  # byte code and the disk's cache
    times = {name: median(each) for name, each in taking_turns(works, args.rounds).items()}
    torch_alone = times["import torch"]
    beyond = {"import vitquant", "everything of vitquant.workflows.quantize"}
    report = Report("Start-up", ["what", "s", "beyond torch, s"])
    for name, taken in times.items():
        report.add(name, f"{taken:.2f}", f"{taken - torch_alone:.2f}" if name in beyond else "")
    report.notes.append(
        f"Whole processes, medians of {args.rounds} rounds that take turns. Goals: 1 s beyond torch, 1 s for help."
    )
    report.notes.append(f"Help imports torch: {'yes' if imports_torch() else 'no'}.")
    report.show(args.markdown)


if __name__ == "__main__":
    main()
