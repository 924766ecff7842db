"""Tables for a reader at a terminal, and the same as Markdown for ``docs/results.md``."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass
class Report:
    """One table of results; the first column names the rows, the others hold figures.

    ``packages`` are the distributions whose versions matter for the figures.
    """

    title: str
    columns: Sequence[str]
    packages: Sequence[str] = ("torch",)
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row, and say it on standard error at once: some rows take minutes."""
        self.rows.append(cells)
        print("  ".join(cells), file=sys.stderr, flush=True)

    def show(self, markdown: Path | None) -> None:
        """Print the table, and append it to the Markdown file if there is one."""
        table = Table(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        console.print(table)
        for note in [*self.notes, self.origin()]:
            console.print(f"- {note}", markup=False, highlight=False)
        if markdown is not None:
            with markdown.open("a") as file:
                file.write(self.markdown())

    def markdown(self) -> str:
        """A section: title, command, table, notes."""
        ruler = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, ruler, *self.rows)]
        notes = [f"- {note}" for note in [*self.notes, self.origin()]]
        return "\n".join([f"\n## {self.title}\n", f"    {command()}\n", *lines, "", *notes, ""])

    def origin(self) -> str:
        """Machine and versions behind the figures."""
        versions = ", ".join(f"{name} {version(name)}" for name in self.packages)
        return f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}."


def command() -> str:
    """The command line as a reader would type it; paths are cut to their last part."""
    script = f"benchmarks.{Path(sys.argv[0]).stem}"
    arguments = [
        Path(argument).name if os.sep in argument else argument for argument in _without_markdown(sys.argv[1:])
    ]
    return shlex.join(["python", "-m", script, *arguments])


def _without_markdown(arguments: list[str]) -> list[str]:
    if "--markdown" not in arguments:
        return arguments
    place = arguments.index("--markdown")
    return arguments[:place] + arguments[place + 2 :]
