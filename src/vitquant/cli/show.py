"""``vitquant show``: the tables of a finished run, or of the changes between two runs. Does not need torch."""

from __future__ import annotations

import argparse

from vitquant.cli.common import DIR, add_command, add_output_options, print_json, print_parts


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "show", "print the results of a finished run, or compare two runs")
    parser.add_argument("folder", metavar="DIR", help=DIR)
    parser.add_argument("--against", metavar="DIR", help="an earlier run: print what is better and what is worse")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the tables, or JSON."""
    from vitquant.report.compare import comparison_tables
    from vitquant.report.files import load_run
    from vitquant.report.run_tables import run_tables

    shown = load_run(args.folder)
    compared = None if args.against is None else shown.compare(load_run(args.against))
    if args.json:
        print_json((compared or shown).to_dict())
    else:
        print_parts(run_tables(shown) if compared is None else comparison_tables(compared))
