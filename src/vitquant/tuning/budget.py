"""Budgets: what a configuration may cost, or what it must reach."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vitquant.errors import ConfigError

EXPECTED = "best, or a list such as W4.5,A8 (mean bits of weights and activations), 12MB, 300Gbop, or 27dB"
NAMES = {"weight_bits": "bits per weight", "activation_bits": "bits per activation", "mb": "MB", "gbop": "Gbop"}
"""What is limited, and its unit."""

_PARTS = {
    "weight_bits": re.compile(r"w([0-9.]+)"),
    "activation_bits": re.compile(r"a([0-9.]+)"),
    "mb": re.compile(r"([0-9.]+)mb"),
    "gbop": re.compile(r"([0-9.]+)gbop"),
    "db": re.compile(r"([0-9.]+)db"),
}


@dataclass(frozen=True)
class Budget:
    """Upper limits by name (:data:`NAMES`), and an SQNR that must be reached with the smallest model.

    Without any, the best configuration with the bits that the points have.
    """

    text: str
    limits: dict[str, float]
    least_db: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        Raises:
            ConfigError: it is none.

        >>> Budget.parse("W4.5, A8").limits
        {'weight_bits': 4.5, 'activation_bits': 8.0}
        >>> Budget.parse("27 dB").least_db
        27.0
        """
        found: dict[str, float] = {}
        for part in text.lower().replace(" ", "").split(","):
            if part == "best":
                continue
            for name, pattern in _PARTS.items():
                match = pattern.fullmatch(part)
                if match and match[1].count(".") <= 1 and match[1] != "." and float(match[1]) > 0 and name not in found:
                    found[name] = float(match[1])
                    break
            else:
                raise ConfigError("not a budget", where="budget", got=text, expected=EXPECTED)
        least = found.pop("db", None)
        return cls(text, found, least)

    @property
    def keeps_bits(self) -> bool:
        """Whether only observers, granularities and forms are chosen."""
        return not self.limits and self.least_db is None
