"""``vitquant run``: classification of images with an integer program."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitquant.cli.common import (
    add_command,
    add_device_option,
    add_executor_option,
    add_output_options,
    add_program_output_option,
    positive,
    print_json,
)
from vitquant.cli.streams import note, say

if TYPE_CHECKING:
    from torch import Tensor

    from vitquant.workflows.classify import Outcome


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "run", "run an integer program on images and print the top classes")
    parser.add_argument("program", metavar="PROGRAM", help="program.json, or the folder that contains it")
    parser.add_argument("images", metavar="IMAGES", help="folder or .npz file of images")
    parser.add_argument("--top", type=positive, default=3, metavar="K", help="classes to print per image (default: 3)")
    parser.add_argument("--limit", type=positive, metavar="N", help="use at most N images")
    parser.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="images per forward pass (default: 8)"
    )
    add_program_output_option(parser)
    parser.add_argument("--out", metavar="FILE", help="also write names, integers and real outputs to this .npz")
    add_device_option(parser)
    add_executor_option(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a line for each image: the classes with the largest logits, or the first of what else it gives."""
    from vitquant.arguments import require_path
    from vitquant.executors.choose import open_executor
    from vitquant.files import require_writable
    from vitquant.program.storage import load_program
    from vitquant.workflows.classify import classify

    out = None if args.out is None else require_path(args.out, "--out")
    if out is not None:
        require_writable(out)
    program = load_program(args.program)
    chosen = program.choose(args.output)
    classes = bool(program.metadata.get("classes")) and chosen[0].name == "logits"
    outcomes = []
    executor = open_executor(program, args.executor, device=args.device, outputs=[output.name for output in chosen])
    note(f"executor       {executor.name}")
    for outcome in classify(program, args.images, limit=args.limit, batch_size=args.batch_size, executor=executor):
        outcomes.append(outcome)
        if args.json:
            continue
        if classes:
            say(f"{outcome.name}  " + "  ".join(f"{c} ({v:.2f})" for c, v in outcome.top(args.top)))
        else:
            say(f"{outcome.name}  {features(outcome.logits)}")
    if args.json:
        shapes = [{name: list(x.shape) for name, x in o.real.items()} for o in outcomes]
        tops = [{"top": o.top(args.top)} if o.logits.ndim == 1 else {} for o in outcomes]
        print_json([{"image": o.name, **t, "outputs": s} for o, t, s in zip(outcomes, tops, shapes, strict=True)])
    if out is not None:
        write(out, outcomes)


def features(x: Tensor) -> str:
    """The size of a feature vector or of dense features, and the first numbers."""
    first = ", ".join(f"{v:.3f}" for v in x.flatten()[:4].tolist())
    size = f"{x.shape[0]} tokens of {x.shape[1]} features" if x.ndim > 1 else f"{len(x)} features"
    return f"{size}: {first}, ..."


def write(path: Path, outcomes: list[Outcome]) -> None:
    """Write names, integers and real numbers as arrays: those of an output ``tokens`` as ``tokens_codes`` and
    ``tokens``; of ``logits`` as ``codes`` and ``logits``.
    """
    from io import BytesIO

    import numpy as np

    from vitquant.files import write_atomically

    arrays = {"names": np.array([o.name for o in outcomes])}
    for name in outcomes[0].codes:
        codes = "codes" if name == "logits" else f"{name}_codes"
        arrays[codes] = np.stack([o.codes[name].numpy() for o in outcomes])
        arrays[name] = np.stack([o.real[name].numpy() for o in outcomes])
    buffer = BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())
