"""``vitquant config``: show, validate and migrate configuration files. Only ``--model`` needs torch."""

from __future__ import annotations

import argparse
import sys

from vitquant.arguments import require_path
from vitquant.cli.common import CONFIG, add_command, add_output_options, depth, print_json
from vitquant.cli.streams import note, say
from vitquant.errors import printable
from vitquant.files import write_atomically
from vitquant.progress import console


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its three subcommands to the parser."""
    config = add_command(commands, "config", "show and migrate configuration files, or print their JSON Schema")
    parts = config.add_subparsers(metavar="SUBCOMMAND", required=True)
    show = add_command(
        parts,
        "show",
        "print the settings of each point, and the rules that set them",
        epilog="The table shows several blocks as blocks.0,2-4.NAME; in a file, write blocks.{0,2..4}.NAME.",
    )
    show.add_argument("file", metavar="CONFIG", help=CONFIG)
    show.add_argument(
        "--model", metavar="NAME", help="list the points of this model (default: a ViT of --depth blocks)"
    )
    show.add_argument(
        "--depth", type=depth, default=12, metavar="N", help="blocks if --model is not given (default: 12)"
    )
    show.add_argument("--names", action="store_true", help="print the names of the points only, one per line")
    show.set_defaults(run=run_show)
    schema = add_command(parts, "schema", "print a JSON Schema for completion in an editor")
    schema.set_defaults(run=run_schema)
    old = add_command(parts, "migrate", "convert a global file to the per-layer format; the model stays the same")
    old.add_argument("file", metavar="CONFIG", help="YAML file in the global format")
    old.add_argument("--out", metavar="FILE", help="output file (default: standard output)")
    old.set_defaults(run=run_migrate)
    for part in (show, schema, old):
        add_output_options(part)


def run_show(args: argparse.Namespace) -> None:
    """Resolve a file against the points of a model and print the table."""
    from vitquant.config import ModelConfig, repair_section, repair_text, rich_table

    resolved = ModelConfig.from_yaml(args.file).resolve(names_of(args.model, args.depth))
    if args.names:
        print("\n".join(resolved))
    elif args.json:
        table = {name: config and config.model_dump() for name, config in resolved.items()}
        print_json(table | repair_section(resolved.repair))
    else:
        console(sys.stdout).print(rich_table(resolved, title=printable(args.file)))
        if resolved.repair:
            say(f"Repair steps, in order: {repair_text(resolved.repair)}.")


def names_of(model: str | None, depth: int) -> tuple[str, ...]:
    """The points of a named model, or of a plain ViT with this depth."""
    from vitquant.config import point_names

    if model is None:
        return point_names(depth)
    from vitquant.adapters.names import lookup

    spec = lookup(model).spec
    return point_names(spec.depth, head=bool(spec.num_classes), distilled=spec.dist_token)


def run_schema(_: argparse.Namespace) -> None:
    """Print the JSON Schema."""
    from vitquant.config import json_schema

    print_json(json_schema())


def run_migrate(args: argparse.Namespace) -> None:
    """Print the per-layer format of a global file, or write it."""
    from vitquant.config import migrate

    out = None if args.out is None else require_path(args.out, "--out")
    text = migrate(args.file)
    if out is None:
        sys.stdout.write(text)
        return
    write_atomically(out, text)
    note(f"wrote {out}")
