"""Peak memory of calibration: 512 images against 64, each in a process of its own, read one batch at a time.

The images are crops of photos, written to a folder as PNG files; ``vitquant.quantize`` reads that folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from benchmarks.calibration import OBSERVERS, config
from benchmarks.model import arguments, load_model
from benchmarks.photos import load_crops, save_folder, split
from benchmarks.report import Report
from vitquant.api import quantize


def peak_mib() -> float:
    """Largest resident memory of this process so far, MiB.

    Not ``resource.getrusage``, whose figure starts with that of the process that started this one.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def child(args: argparse.Namespace) -> None:
    quantize(load_model(args), config(args.observer, args.mode), calibration=args.photos, limit=args.limit)
    print(peak_mib())


def measure(args: argparse.Namespace, folder: Path, observer: str, count: int) -> float:
    given = {
        "weights": args.weights,
        "photos": folder,
        "model": args.model,
        "img-size": args.img_size,
        "threads": args.threads,
        "observer": observer,
        "mode": args.mode,
        "limit": count,
    }
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory"]
    command += [f"--{name}={value}" for name, value in given.items()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    return float(done.stdout)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--few", type=int, default=64)
    parser.add_argument("--many", type=int, default=512)
    parser.add_argument("--mode", default="channel_wise")
    parser.add_argument("--observer", default="", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.limit:
        child(args)
        return
    preprocessing = load_model(args).preprocessing
    files, _ = split(args.photos, preprocessing)
    report = Report(
        f"Peak memory of calibration, {args.mode}", ["observer", f"{args.few}, MiB", f"{args.many}, MiB", "more"]
    )
    with tempfile.TemporaryDirectory(prefix="vitquant-bench-") as folder:
        save_folder(load_crops(files, preprocessing, args.many), Path(folder))
        for observer in OBSERVERS:
            few, many = (measure(args, Path(folder), observer, count) for count in (args.few, args.many))
            report.add(observer, f"{few:.0f}", f"{many:.0f}", f"{many / few - 1:+.1%}")
    report.notes.append("Resident memory of the whole process, Python, torch and the float model included. Goal: 5 %.")
    report.show(args.markdown)


if __name__ == "__main__":
    main()
