"""The resolved configuration as a table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitquant.config.catalogue import POINT_KINDS, PointKind, section_of
from vitquant.config.model_config import ResolvedConfig
from vitquant.config.quant_config import QuantConfig
from vitquant.errors import printable

if TYPE_CHECKING:
    from rich.table import Table


GRANULARITY = "layer_wise: per-tensor. channel_wise: per-channel. head_wise: per-head or per-group."
"""The terms of the column ``mode``."""


@dataclass(frozen=True)
class Row:
    """One line: points with the same settings from the same rules. All cells are text."""

    points: str
    bits: str
    sign: str
    mode: str
    observer: str
    method: str
    enabled: str
    source: str


def render_table(resolved: ResolvedConfig) -> list[Row]:
    """The resolved settings, in model order; a layer with the same settings in several blocks is one row,
    ``blocks.0-11.NAME``.

    ``enabled`` is ``yes``, ``no`` (``output_quant_enable: false``) or ``float`` (no rule covers the point).
    """
    groups: dict[tuple[str, QuantConfig | None, str], list[str]] = {}
    for point, config in resolved.items():
        section = section_of(point)
        key = section if point.startswith("blocks.") else point
        groups.setdefault((key, config, resolved.source(point)), []).append(point)
    order = {section: index for index, section in enumerate(_first_seen(resolved))}
    alike = sorted(groups.items(), key=lambda group: order[_name(group[1][0])])
    return [_row(_label(points), config, source) for (_, config, source), points in alike]


def rich_table(resolved: ResolvedConfig, title: str | None = None) -> Table:
    """The rows of :func:`render_table` as a table that rich prints, compact enough for 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        caption=GRANULARITY,
        caption_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("points", "type", "mode", "observer", "rules"):
        table.add_column(name, no_wrap=name == "points", overflow="fold")
    for row in render_table(resolved):
        quantized = row.enabled == "yes"
        kind = f"{'int' if row.sign == 'signed' else 'uint'}{row.bits}" if quantized else "float"
        used = [row.observer, row.method] if row.method not in ("", "uniform") else [row.observer]
        observer = ", ".join(text for text in used if text != "none")
        cells = (row.mode, observer) if quantized else ("", "")
        table.add_row(row.points, kind, *cells, row.source, style=None if quantized else "dim")
    return table


def _first_seen(resolved: ResolvedConfig) -> list[str]:
    return list(dict.fromkeys(_name(point) for point in resolved))


def _name(point: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "blocks.", point)


def _label(points: list[str]) -> str:
    """``blocks.0.x`` to ``blocks.11.x`` as ``blocks.0-11.x``; with gaps, ``blocks.0,2-3.x``."""
    match = re.match(r"blocks\.\d+\.(.+)", points[0])
    if match is None:
        return points[0]
    numbers = sorted(int(point.split(".")[1]) for point in points)
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    spans = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"blocks.{spans}.{match[1]}"


def _row(points: str, config: QuantConfig | None, source: str) -> Row:
    if config is None:
        return Row(points, "", "", "", "", "", "float", printable(source))
    softmax = POINT_KINDS[section_of(re.sub(r"^blocks\.[\d,-]+\.", "", points))] is PointKind.INTSOFT
    method = f"{config.softmax}, {config.approximation}" if softmax else config.quantization_method
    if softmax and config.quantization_method != "uniform":
        method += f", {config.quantization_method}"
    if config.weight_groups:
        method += f", groups of {config.weight_groups}"
    return Row(
        points=points,
        bits=str(config.bit_type.bits),
        sign="signed" if config.bit_type.signed else "unsigned",
        mode=config.calibration_mode,
        observer=_observer(config) if config.softmax == "uniform" else "none",
        method=method,
        enabled="yes" if config.output_quant_enable else "no",
        source=printable(source),
    )


def _observer(config: QuantConfig) -> str:
    """The observer with the settings that it uses."""
    name = config.observer_type.removesuffix("Observer")
    if name == "Percentile":
        return f"{name} {config.percentile_alpha:g}, {config.percentile_sigma:g}"
    return name if name == "Minmax" else f"{name} {config.kl_bins}"
