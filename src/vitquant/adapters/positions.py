"""Position embeddings: finding the patch grid of a checkpoint's table, and resampling it to another grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CLEARLY_SMOOTHER = 0.8
"""On a wrong grid a trained table is at least 1.3 times as rough; unstructured tables differ by 1 %."""


def fit_positions(
    table: Tensor, num_prefix: int, wanted: tuple[int, int], default: tuple[int, int]
) -> tuple[Tensor, str | None]:
    """A position embedding for the wanted grid.

    A table whose number of rows matches the wanted grid is used unchanged, unless another grid has the same number of
    rows and the values match that grid better: trained positions of neighbouring patches are similar. Other tables are
    resampled from the default grid, or from a square grid.

    Args:
        table: ``[1, prefix + rows, D]``.
        num_prefix: rows of the class, distillation and register tokens.
        wanted: the model's grid, ``(patches per column, patches per row)``.
        default: the grid of the model's default image size.

    Returns:
        The table, unchanged if its rows match no grid, and a note on assumptions or resampling.
    """
    rows = table.shape[1] - num_prefix if table.ndim == 3 and len(table) == 1 else 0
    side = math.isqrt(max(rows, 0))
    grids = [g for g in dict.fromkeys((wanted, default, (side, side))) if rows > 0 and g[0] * g[1] == rows]
    if not grids or grids == [wanted]:
        return table, None
    if wanted not in grids:
        note = f"position embedding resampled from {_by(grids[0])} to {_by(wanted)} patches"
        return resample_pos_embed(table, grids[0], wanted, num_prefix), note
    rough = {grid: roughness(table[:, num_prefix:], grid) for grid in grids}
    smoothest = min(grids, key=rough.__getitem__)
    fits = f"the position embedding's {rows} rows match {' and '.join(map(_by, grids))} patches"
    if rough[smoothest] < CLEARLY_SMOOTHER * rough[wanted]:
        note = f"{fits}; its values match {_by(smoothest)}, so it was resampled to {_by(wanted)}"
        return resample_pos_embed(table, smoothest, wanted, num_prefix), note
    return table, f"{fits}; it is used unchanged, for {_by(wanted)}"


def roughness(table: Tensor, grid: tuple[int, int]) -> float:
    """Mean squared difference of neighbours in a table ``[1, rows * cols, D]`` arranged on a grid."""
    cells = table.float().reshape(*grid, -1)
    steps = [cells[1:] - cells[:-1], cells[:, 1:] - cells[:, :-1]]
    return sum(step.square().mean().item() for step in steps if step.numel())


def resample_pos_embed(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int) -> Tensor:
    """A position embedding ``[1, prefix + rows * cols, D]`` for another grid, as timm's ``resample_abs_pos_embed``.

    The grid is resized bicubically with antialiasing; the rows of the prefix tokens stay as they are.
    """
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    grid = patches.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    return torch.cat([prefix, resized.to(pos_embed.dtype)], dim=1)


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"
