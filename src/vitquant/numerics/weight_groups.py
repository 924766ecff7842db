"""Two-level weights: one scale per row, and a whole multiplier of it for each group of neighbouring inputs.

The weight ``q * m`` is an ordinary 8-bit code of the row's scale, ``q`` an integer of few bits and ``m`` from 1 to 16
the multiplier of its group. Executors see 8-bit rows; stored are ``q`` and ``m``.

Source: the progressive group quantization of QServe (Lin et al., "QServe: W4A8KV4 Quantization and System Co-design
for Efficient LLM Serving", 2024, arXiv 2405.04532), here symmetric on both levels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitquant.numerics.packing import MAX_MULTIPLIER

LEAST_SHARE = 0.5
"""The finest multiplier that is tried, relative to the one that clips nothing."""


def group_maxima(weight: Tensor, group: int) -> Tensor:
    """The largest magnitude in each group of ``group`` neighbouring columns of ``[out, in]``, ``[out, groups]``."""
    return grouped(weight.abs(), group).amax(2)


def grouped(columns: Tensor, group: int) -> Tensor:
    """``[..., in]`` as ``[..., groups, group]``; zeros fill up the last group."""
    padded: Tensor = F.pad(columns, (0, -columns.shape[-1] % group))
    return padded.reshape(*columns.shape[:-1], -1, group)


def spread(multipliers: Tensor, group: int, columns: int) -> Tensor:
    """One multiplier per column, ``[out, in]``, from ``[out, groups]``."""
    return multipliers.repeat_interleave(group, dim=1)[:, :columns]


def covering_multipliers(weight: Tensor, scale: Tensor, limit: int, group: int) -> Tensor:
    """The smallest multipliers that clip no weight of their group, if one of up to 16 does not, ``[out, groups]``.

    Args:
        weight: ``[out, in]``.
        scale: of the rows, ``[out, 1]`` or one number.
        limit: the largest ``q``.
        group: columns per group.
    """
    # a row's largest weight is 16 * limit times the scale, but for rounding in the scale's own type
    return (group_maxima(weight, group) / (scale * limit) - 1e-5).ceil().clamp(1, MAX_MULTIPLIER)


def best_multipliers(weight: Tensor, scale: Tensor, limit: int, group: int, importance: Tensor | None = None) -> Tensor:
    """The multipliers with the least squared error after rounding to nearest, ``[out, groups]``.

    Arguments as for :func:`covering_multipliers`; ``importance`` ``[in]`` weighs the squared errors of the columns.
    Multipliers from half of the covering one up to it are tried: a finer step clips the largest weights. Of equally
    good ones the largest is taken.
    """
    covering = covering_multipliers(weight, scale, limit, group)
    parts = grouped(weight / scale, group)
    weights = None if importance is None else grouped(importance, group)
    best, least = covering, torch.full_like(covering, torch.inf)
    for below in range(int(MAX_MULTIPLIER * LEAST_SHARE) + 1):
        trial = covering - below
        allowed = trial >= (covering * LEAST_SHARE).clamp(min=1)
        if not bool(allowed.any()):
            break
        step = trial.clamp(min=1)[..., None]
        errors = ((parts / step).round().clamp(-limit, limit) * step - parts).square()
        error = (errors if weights is None else errors * weights).sum(2)
        better = allowed & (error < least)
        best, least = torch.where(better, trial, best), torch.where(better, error, least)
    return best


def quantize_grouped(weight: Tensor, scale: Tensor, multipliers: Tensor, limit: int, group: int) -> Tensor:
    """Products ``q * m`` nearest to the weights ``[out, in]``, whole numbers in their float type.

    ``multipliers`` are ``[out, groups]``, the other arguments as for :func:`covering_multipliers`.
    """
    steps = spread(multipliers, group, weight.shape[1])
    return (weight / (scale * steps)).round().clamp(-limit, limit) * steps
