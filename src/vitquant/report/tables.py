"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING, TextIO, TypeAlias

from vitquant.errors import printable
from vitquant.progress import console
from vitquant.report.units import decibels, percent
from vitquant.results import Evaluation

if TYPE_CHECKING:
    from rich.table import Table

COMPARED = ("", "float", "simulated", "integer")
"""The columns of a comparison."""

Part: TypeAlias = "Table | str"
"""A table, or a line of text."""


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> Table:
    """A table of plain text; the columns after the first ``text_columns`` are right-aligned."""
    from rich.table import Table

    made = Table(title=printable(title), title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(printable, row))
    return made


def write(parts: Iterable[Part], stream: TextIO) -> None:
    """Write tables and lines to a stream, as wide as the terminal that it is."""
    out = console(stream)
    for part in parts:
        if isinstance(part, str):
            stream.write(f"{printable(part)}\n")
        else:
            out.print(part)


def as_text(parts: Iterable[Part]) -> str:
    """Tables and lines as text, without the line end of the last line."""
    stream = StringIO()
    write(parts, stream)
    return stream.getvalue().removesuffix("\n")


def comparison_rows(found: Evaluation) -> Iterator[tuple[str, str, str, str]]:
    """The comparison of the float, simulated and integer models: one row per available metric."""
    integer = found.integer
    if found.fp32_top1 is not None:
        top1 = integer.top1 if integer else None
        yield "top-1", percent(found.fp32_top1), percent(found.quantized_top1), percent(top1)
    if found.agreement is not None:
        yield "same class as float", "", percent(found.agreement), percent(integer.agreement if integer else None)
    yield "SQNR of the output", "", decibels(found.sqnr_db), decibels(integer.sqnr_db if integer else None)
    yield "SQNR at the final norm", "", decibels(found.sqnr_final_norm_db), ""
    if integer is not None:
        yield "SQNR against simulated", "", "", decibels(integer.to_simulated_db)


def computed_with(executor: str) -> str:
    """A sentence that names the executor."""
    return f"Integer results computed with {'the ' if executor.startswith('reference') else ''}{executor}."
