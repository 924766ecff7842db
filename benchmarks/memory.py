"""Peak memory of calibration after 64 images, after 512, and after the ranges are chosen; a process for each observer.

The images are crops of photos, written to a folder as PNG files, and read from there one batch at a time. Peaks of one
process are compared: those of two differ by a hundred MiB for no other reason than where memory happens to lie.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks.calibration import BATCH, OBSERVERS, config
from benchmarks.model import arguments, load_model
from benchmarks.photos import load_crops, save_folder, split
from benchmarks.report import Report
from vitquant.calibration.calibrate import calibrate_batches
from vitquant.data import Batch, open_images
from vitquant.workflows.quantize import prepare


def peak_mib() -> float:
    """Largest resident memory of this process so far, MiB.

    Not ``resource.getrusage``, whose figure starts with that of the process that started this one.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def child(args: argparse.Namespace) -> None:
    model = load_model(args)
    source = open_images(args.photos, model.preprocessing)
    peaks: list[float] = []

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(source.batches(BATCH)):
            if number * BATCH == args.few:
                peaks.append(peak_mib())
            yield batch
        peaks.append(peak_mib())

    calibrate_batches(prepare(model, config(args.observer, args.mode)), batches())
    print(*peaks, peak_mib())


def measure(args: argparse.Namespace, folder: Path, observer: str) -> list[float]:
    """Peaks in MiB: after few images, after all, at the end."""
    given = {
        "weights": args.weights,
        "photos": folder,
        "model": args.model,
        "img-size": args.img_size,
        "threads": args.threads,
        "observer": observer,
        "mode": args.mode,
        "few": args.few,
    }
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory"]
    command += [f"--{name}={value}" for name, value in given.items()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--few", type=int, default=64)
    parser.add_argument("--many", type=int, default=512)
    parser.add_argument("--mode", default="channel_wise")
    parser.add_argument("--observer", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.observer:
        child(args)
        return
    preprocessing = load_model(args).preprocessing
    files, _ = split(args.photos, preprocessing)
    columns = ["observer", f"after {args.few}, MiB", f"after {args.many}, MiB", "more", "with the ranges, MiB"]
    report = Report(f"Peak memory of calibration, {args.mode}", columns)
    with tempfile.TemporaryDirectory(prefix="vitquant-bench-") as folder:
        save_folder(load_crops(files, preprocessing, args.many), Path(folder))
        for observer in OBSERVERS:
            few, many, end = measure(args, Path(folder), observer)
            report.add(observer, f"{few:.0f}", f"{many:.0f}", f"{many / few - 1:+.1%}", f"{end:.0f}")
    report.notes.append("Resident memory of the whole process, Python, torch and the float model included. Goal: 5 %.")
    report.show(args.markdown)


if __name__ == "__main__":
    main()
