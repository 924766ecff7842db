"""``vitquant run``: classification of images with an integer program."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitquant.cli.common import (
    add_command,
    add_device_option,
    add_executor_option,
    add_output_options,
    positive,
    print_json,
)
from vitquant.cli.streams import note, say


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
    parser.add_argument("--out", metavar="FILE", help="also write names, integer outputs and logits to this .npz")
    add_device_option(parser)
    add_executor_option(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a line for each image: the classes with the largest logits, or the first features without a head."""
    from vitquant.arguments import require_path
    from vitquant.executors.choose import open_executor
    from vitquant.files import require_writable
    from vitquant.program.storage import load_program
    from vitquant.workflows.classify import classify

    out = None if args.out is None else require_path(args.out, "--out")
    if out is not None:
        require_writable(out)
    program = load_program(args.program)
    features = not program.metadata.get("classes")
    outcomes = []
    executor = open_executor(program, args.executor, device=args.device)
    note(f"executor       {executor.name}")
    for outcome in classify(program, args.images, limit=args.limit, batch_size=args.batch_size, executor=executor):
        outcomes.append(outcome)
        if args.json:
            continue
        if features:
            first = ", ".join(f"{v:.3f}" for v in outcome.logits[:4].tolist())
            say(f"{outcome.name}  {len(outcome.logits)} features: {first}, ...")
        else:
            say(f"{outcome.name}  " + "  ".join(f"{c} ({v:.2f})" for c, v in outcome.top(args.top)))
    if args.json:
        print_json([{"image": o.name, "top": o.top(args.top)} for o in outcomes])
    if out is not None:
        write(out, outcomes)


def write(path: Path, outcomes: list) -> None:  # type: ignore[type-arg]
    """Write names, integer outputs and logits as arrays."""
    from io import BytesIO

    import numpy as np

    from vitquant.files import write_atomically

    buffer = BytesIO()
    np.savez(
        buffer,
        names=np.array([o.name for o in outcomes]),
        codes=np.stack([o.codes.numpy() for o in outcomes]),
        logits=np.stack([o.logits.numpy() for o in outcomes]),
    )
    write_atomically(path, buffer.getvalue())
