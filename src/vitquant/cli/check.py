"""``vitquant check``: whether each point can run in integer arithmetic."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from vitquant.cli.common import CONFIG, add_command, add_output_options, depth, print_json
from vitquant.cli.streams import say
from vitquant.errors import printable
from vitquant.progress import console

if TYPE_CHECKING:
    from vitquant.compiler.deployability import Verdict


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "check", "check which points can run in integer arithmetic")
    parser.add_argument("config", metavar="CONFIG", help=CONFIG)
    parser.add_argument(
        "--model", metavar="NAME", help="check all points of this model (default: the points that the file configures)"
    )
    parser.add_argument(
        "--depth", type=depth, default=12, metavar="N", help="blocks if --model is not given (default: 12)"
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the verdicts; fail if a point is not integer-executable."""
    from vitquant.config import ModelConfig

    config = ModelConfig.from_yaml(args.config)  # before torch is imported, which takes longer
    from vitquant.adapters.names import lookup
    from vitquant.architectures.families import VIT
    from vitquant.architectures.float_vit import ViTSpec
    from vitquant.compiler.deployability import refusal, verdicts
    from vitquant.compiler.float_share import float_share

    if args.model is None:
        smallest = ViTSpec((1, 1), (1, 1), embed_dim=1, depth=args.depth, num_heads=1, mlp_hidden=1, num_classes=1)
        found = verdicts(VIT.shapes_only(smallest, config), sized=False)
        judged = [v for v in found if v.configured]
    else:
        model = VIT.shapes_only(lookup(args.model).spec, config)
        judged = found = verdicts(model)
    if args.json:
        print_json([asdict(v) | {"ships": v.ships} for v in judged])
    else:
        show(judged, args.config)
        if args.model is not None:
            say(f"Whole model: {float_share(model)}.")
    if not all(v.ships for v in judged):
        raise refusal(judged)
    if not args.json:
        missing = len(found) - len(judged)
        configured = "configured points" if missing else "points"
        say(f"All {len(judged)} {configured} are integer-executable.")
        if missing:
            say(f"{missing} points are not configured; a complete model needs settings for them.")


def show(judged: list[Verdict], title: str) -> None:
    """A table with one row for points that have the same verdict in several blocks."""
    from rich.table import Table

    table = Table(title=printable(title), header_style="bold", title_justify="left")
    for column in ("points", "integer execution", "supported", "nearest supported setting"):
        table.add_column(column, overflow="fold")
    for points, verdict in alike(judged).items():
        what = verdict.action if verdict.ships else f"{verdict.action}: {verdict.problem}".removeprefix(": ")
        style = None if verdict.ships else "red"
        table.add_row(points, what, "yes" if verdict.ships else "no", verdict.fix or "", style=style)
    console(sys.stdout).print(table)


def alike(judged: list[Verdict]) -> dict[str, Verdict]:
    """A label for each group of points with the same layer and the same verdict -> one of them."""
    groups: dict[tuple[str, Verdict], list[Verdict]] = {}
    for verdict in judged:
        layer = verdict.point.split(".", 2)[-1] if verdict.point.startswith("blocks.") else verdict.point
        groups.setdefault((layer, replace(verdict, point=layer)), []).append(verdict)
    return {label(layer, group): group[0] for (layer, _), group in groups.items()}


def label(layer: str, group: list[Verdict]) -> str:
    """``blocks.0-11.attn_q_out`` for a group, the point's own name for a single one."""
    if len(group) == 1:
        return group[0].point
    blocks = [int(v.point.split(".")[1]) for v in group]
    whole = blocks == list(range(blocks[0], blocks[-1] + 1))
    numbers = f"{blocks[0]}-{blocks[-1]}" if whole else ",".join(map(str, blocks))
    return f"blocks.{numbers}.{layer}"
