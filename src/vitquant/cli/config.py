"""``vitquant config``: look at configuration files, check and migrate them. Only ``--model`` needs torch."""

from __future__ import annotations

import argparse
import sys

from vitquant.arguments import require_path
from vitquant.cli.common import add_output_options, depth, print_json
from vitquant.cli.streams import note
from vitquant.config import ModelConfig, json_schema, migrate, point_names, rich_table
from vitquant.errors import printable
from vitquant.files import write_atomically
from vitquant.progress import console


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its three parts to the parser."""
    parts = commands.add_parser("config", help="show, describe and migrate configuration files").add_subparsers(
        metavar="PART", required=True
    )
    show = parts.add_parser(
        "show",
        help="print the settings of every point, and which rule gave them",
        epilog="In the table blocks.0,2-4.NAME stands for several blocks; in a file write blocks.{0,2..4}.NAME.",
    )
    show.add_argument("file", help="YAML file, or a shipped one's name")
    show.add_argument("--model", metavar="NAME", help="the model whose points to list (default: --depth blocks)")
    show.add_argument("--depth", type=depth, default=12, metavar="N", help="number of blocks without --model (12)")
    show.add_argument("--names", action="store_true", help="print the names of the points only, one a line")
    show.set_defaults(run=run_show)
    schema = parts.add_parser("schema", help="print a JSON Schema, for completion in an editor")
    schema.set_defaults(run=run_schema)
    old = parts.add_parser("migrate", help="write a global file in the per-layer form; the model stays the same")
    old.add_argument("file", help="YAML file in the global form")
    old.add_argument("--out", metavar="FILE", help="where to write it (default: standard output)")
    old.set_defaults(run=run_migrate)
    for part in (show, schema, old):
        add_output_options(part)


def run_show(args: argparse.Namespace) -> None:
    """Resolve a file against the points of a model and print the table."""
    resolved = ModelConfig.from_yaml(args.file).resolve(names_of(args.model, args.depth))
    if args.names:
        print("\n".join(resolved))
    elif args.json:
        print_json({name: config and config.model_dump() for name, config in resolved.items()})
    else:
        console(sys.stdout).print(rich_table(resolved, title=printable(args.file)))


def names_of(model: str | None, depth: int) -> tuple[str, ...]:
    """The points of a named model, or of any plain ViT of this depth."""
    if model is None:
        return point_names(depth)
    from vitquant.adapters.names import lookup

    spec = lookup(model).spec
    return point_names(spec.depth, head=bool(spec.num_classes), distilled=spec.dist_token)


def run_schema(_: argparse.Namespace) -> None:
    """Print the JSON Schema."""
    print_json(json_schema())


def run_migrate(args: argparse.Namespace) -> None:
    """Print the per-layer form of a global file, or write it."""
    out = None if args.out is None else require_path(args.out, "--out")
    text = migrate(args.file)
    if out is None:
        sys.stdout.write(text)
        return
    write_atomically(out, text)
    note(f"wrote {out}")
