"""The choice of a setting for every point as an integer program, solved by HiGHS through SciPy.

One binary variable per setting, exactly one setting per point; minimal error within limits of cost, or minimal cost
within a limit of error. Mixed precision as an integer program: HAWQ-V3 (Yao et al., 2021). Bit operations multiply the
bits of two operands; the products are linear in variables for pairs of widths, whose sums are the widths' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitquant.errors import ConfigError, MissingDependencyError


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix product of two points: its multiplications, and the rows of both with their bits."""

    multiplications: float
    sides: tuple[Mapping[int, int], Mapping[int, int]]
    """Row to bits, for each operand."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What there is to choose from.

    Args:
        errors: relative energy of the output's error, per row; infinite where a row must not be chosen.
        points: the rows of each point.
        costs: per name, the cost of each row; the cost of a choice is their sum.
        products: the matrix products of two of the points, whose bit operations are ``gbop``; under the same name
            ``costs`` has those of a point with an operand whose width is fixed.
        tied: pairs of sets of rows: of both sets or of none one is chosen.
    """

    errors: np.ndarray
    points: Sequence[Sequence[int]]
    costs: Mapping[str, np.ndarray]
    products: Sequence[Product] = ()
    tied: Sequence[tuple[Sequence[int], Sequence[int]]] = ()

    def cost(self, name: str, rows: Sequence[int]) -> float:
        """What a choice costs."""
        total = float(self.costs[name][list(rows)].sum()) if name in self.costs else 0.0
        if name != "gbop":
            return total
        chosen = set(rows)
        for product in self.products:
            bits = [next(b for row, b in side.items() if row in chosen) for side in product.sides]
            total += product.multiplications * bits[0] * bits[1] / 1e9
        return total

    def solve(
        self, limits: Mapping[str, float], *, minimize: str | None = None, most_error: float | None = None
    ) -> list[int] | None:
        """The best choice, a row per point, in the order of the points; ``None`` if there is none.

        Args:
            limits: the most that a choice may cost, by name.
            minimize: the cost to minimise; without it the error.
            most_error: the most error that a choice may have.

        Raises:
            MissingDependencyError: SciPy is not installed.
        """
        optimize, sparse = scipy_parts()
        count, extra = len(self.errors), self.pair_variables()
        variables = count + len(extra.weights)
        matrix: list[tuple[dict[int, float], float, float]] = []
        for rows in self.points:
            matrix.append((dict.fromkeys(rows, 1.0), 1.0, 1.0))
        for one, other in self.tied:
            matrix.append((dict.fromkeys(one, 1.0) | dict.fromkeys(other, -1.0), 0.0, 0.0))
        usable = np.isfinite(self.errors)
        scale = float(np.median(self.errors[usable & (self.errors > 0)])) if (self.errors[usable] > 0).any() else 1.0
        errors = np.where(usable, self.errors, 0.0) / scale
        objective = np.zeros(variables)
        if limits.get("gbop") is not None or minimize == "gbop":
            matrix += extra.constraints
        if minimize is None:
            objective[:count] = errors
        else:
            coefficients = self.coefficients(minimize, extra)
            objective[: len(coefficients)] = coefficients / max(float(np.abs(coefficients).max()), 1e-30) * 1e3
            objective[:count] += 1e-6 * errors / max(float(errors.max()), 1e-30)  # among equals, the least error
        if most_error is not None:
            matrix.append((dict(enumerate(errors)), -np.inf, most_error / scale))
        for name, limit in limits.items():
            matrix.append((dict(enumerate(self.coefficients(name, extra))), -np.inf, limit * (1 + 1e-9)))
        entries = [(i, j, v) for i, (row, _, _) in enumerate(matrix) for j, v in row.items() if v]
        i, j, v = (np.array(part) for part in zip(*entries, strict=True))
        a = sparse.csr_matrix((v, (i, j)), shape=(len(matrix), variables))
        low, high = (np.array([row[k] for row in matrix], dtype=float) for k in (1, 2))
        upper = np.ones(variables)
        upper[:count] = usable
        found = optimize.milp(
            objective,
            constraints=optimize.LinearConstraint(a, low, high),
            integrality=np.r_[np.ones(count), np.zeros(variables - count)],
            bounds=optimize.Bounds(0, upper),
            options={"time_limit": 60.0, "mip_rel_gap": 1e-4},
        )
        if found.x is None:
            return None
        return [max(rows, key=lambda row: found.x[row]) for rows in self.points]

    def coefficients_range(self, name: str) -> tuple[float, float]:
        """The least and the greatest that any choice can cost."""
        costs = self.costs.get(name, np.zeros(len(self.errors)))
        ends = [sum(f(float(costs[row]) for row in rows) for rows in self.points) for f in (min, max)]
        for product in self.products if name == "gbop" else ():
            for index, f in enumerate((min, max)):
                widths = [f(side.values()) for side in product.sides]
                ends[index] += product.multiplications * widths[0] * widths[1] / 1e9
        return ends[0], ends[1]

    def coefficients(self, name: str, extra: PairVariables) -> np.ndarray:
        """What each variable costs.

        Raises:
            ConfigError: there is no such cost.
        """
        if name == "gbop":
            alone = self.costs.get(name, np.zeros(len(self.errors)))
            both: np.ndarray = np.r_[alone, extra.weights]
            return both
        if name not in self.costs:
            raise ConfigError("nothing has this cost", where="budget", got=name, expected=", ".join(self.costs))
        costs: np.ndarray = self.costs[name]
        return costs

    def pair_variables(self) -> PairVariables:
        """A variable for each pair of widths of each product: both operands have them."""
        weights: list[float] = []
        constraints: list[tuple[dict[int, float], float, float]] = []
        first = len(self.errors)
        for product in self.products:
            widths = [sorted(set(side.values())) for side in product.sides]
            place = {
                (a, b): first + len(weights) + n
                for n, (a, b) in enumerate((a, b) for a in widths[0] for b in widths[1])
            }
            weights += [product.multiplications * a * b / 1e9 for a, b in place]
            for index, side in enumerate(product.sides):
                for width in widths[index]:
                    row = {variable: 1.0 for pair, variable in place.items() if pair[index] == width}
                    row |= {r: -1.0 for r, bits in side.items() if bits == width}
                    constraints.append((row, 0.0, 0.0))
        return PairVariables(np.array(weights), constraints)


@dataclass(frozen=True, eq=False)
class PairVariables:
    """Bit operations of each pair of widths, and what ties the pairs to the rows."""

    weights: np.ndarray
    constraints: list[tuple[dict[int, float], float, float]]


def scipy_parts() -> tuple[Any, Any]:
    """``scipy.optimize`` and ``scipy.sparse``.

    Raises:
        MissingDependencyError: SciPy is not installed.
    """
    try:
        from scipy import optimize, sparse
    except ImportError as error:
        raise MissingDependencyError(
            f"scipy is needed for this and cannot be imported: {error}",
            where="tune",
            fix="pip install 'vitquant[tune]'",
        ) from error
    return optimize, sparse
