"""How tokens become heads, in both forms of graphs."""

from __future__ import annotations


def heads_layout(
    shape: tuple[int, ...], heads: int, windows: int, *, transposed: bool = False
) -> tuple[list[int], list[int]]:
    """How tokens ``[N, C]`` of each image become heads ``[H, N, C / H]``, with windows ``[H, W, N / W, C / H]``.

    Returns:
        The sizes to reshape to, without the batch, and the order of the axes afterwards, with it; ``transposed``
        exchanges the last two axes.
    """
    tokens, channels = shape
    if windows == 1:
        return [tokens, heads, channels // heads], [0, 2, 3, 1] if transposed else [0, 2, 1, 3]
    sizes = [windows, tokens // windows, heads, channels // heads]
    return sizes, [0, 3, 1, 4, 2] if transposed else [0, 3, 1, 2, 4]
