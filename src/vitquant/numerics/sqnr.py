"""Signal to quantization noise ratio (SQNR)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitquant.results import IDENTICAL_DB

NOISE_FLOOR = 10 ** (-IDENTICAL_DB / 10)
"""Least ratio of noise to signal."""


def decibel(signal: float, noise: float) -> float:
    """Signal to noise ratio in dB, at most 300; 0 where there is neither."""
    if signal == 0:
        return 0.0
    return 10 * math.log10(signal / max(noise, NOISE_FLOOR * signal))


def energy(x: Tensor) -> float:
    """Sum of squares. Rows are summed in the tensor's own type, which needs no second copy of it, then in float64."""
    return float(torch.linalg.vector_norm(x, dim=-1).double().square().sum())


@dataclass
class SqnrMeter:
    """SQNR over any number of batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, value: Tensor) -> None:
        """Take in one batch of both."""
        self.signal += energy(reference)
        self.noise += energy(reference - value)

    @property
    def db(self) -> float:
        """The ratio so far, in dB."""
        return decibel(self.signal, self.noise)
