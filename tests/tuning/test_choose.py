"""The integer program against the enumeration of all choices, and budgets."""

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitquant.errors import ConfigError, MissingDependencyError
from vitquant.tuning.budget import Budget
from vitquant.tuning.choose import Problem, Product

pytest.importorskip("scipy")

BITS = (4, 6, 8)


def problem(errors: list[float]) -> Problem:
    """Three points with three widths each, of 1, 2 and 3 elements; the first two are multiplied."""
    points = [list(range(3 * i, 3 * i + 3)) for i in range(3)]
    bits = np.array(BITS * 3, dtype=float)
    size = np.repeat([1.0, 2.0, 3.0], 3)
    sides = tuple({row: int(bits[row]) for row in rows} for rows in points[:2])
    product = Product(2e9, (sides[0], sides[1]))
    alone = np.where(np.arange(9) >= 6, bits, 0.0)  # of the third point with something that is fixed
    return Problem(np.array(errors), points, {"mb": bits * size, "gbop": alone}, [product], [([0], [3]), ([1], [4])])


def choices(found: Problem) -> list[tuple[int, ...]]:
    """All choices that keep what is tied together."""
    every = itertools.product(*found.points)
    return [c for c in every if all(any(r in c for r in a) == any(r in c for r in b) for a, b in found.tied)]


errors = st.lists(st.floats(1e-3, 1), min_size=9, max_size=9)


@settings(max_examples=40, deadline=None)
@given(errors, st.floats(24, 48), st.sampled_from(["mb", "gbop"]))
def test_least_error_within_a_limit(given_errors: list[float], limit: float, name: str) -> None:
    found = problem(given_errors)
    limit *= 1 if name == "mb" else 2.5
    fitting = [c for c in choices(found) if found.cost(name, c) <= limit]
    solved = found.solve({name: limit})
    if not fitting:
        assert solved is None
        return
    assert solved is not None
    assert found.cost(name, solved) <= limit * (1 + 1e-6)
    best = min(found.errors[list(c)].sum() for c in fitting)
    assert found.errors[solved].sum() == pytest.approx(best, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(errors, st.floats(0.5, 2), st.sampled_from(["mb", "gbop"]))
def test_least_cost_within_an_error(given_errors: list[float], most: float, name: str) -> None:
    found = problem(given_errors)
    fitting = [c for c in choices(found) if found.errors[list(c)].sum() <= most]
    solved = found.solve({}, minimize=name, most_error=most)
    if not fitting:
        assert solved is None
        return
    assert solved is not None
    assert found.errors[solved].sum() <= most * (1 + 1e-6)
    assert found.cost(name, solved) == pytest.approx(min(found.cost(name, c) for c in fitting), rel=1e-3)


def test_what_is_forbidden_is_not_chosen() -> None:
    given_errors = [0.1] * 9
    given_errors[8] = math.inf
    solved = problem(given_errors).solve({}, minimize="mb", most_error=1)
    assert solved == [0, 3, 6]
    given_errors[6] = given_errors[7] = math.inf
    assert problem(given_errors).solve({}) is None


def test_bit_operations_by_hand() -> None:
    assert problem([0.1] * 9).cost("gbop", [0, 5, 6]) == 2 * 4 * 8 + 4


@pytest.mark.parametrize(
    ("text", "limits", "least"),
    [
        ("best", {}, None),
        ("27 dB", {}, 27.0),
        ("W4.5,A8", {"weight_bits": 4.5, "activation_bits": 8.0}, None),
        ("12MB", {"mb": 12.0}, None),
        ("300 Gbop, 12 MB", {"gbop": 300.0, "mb": 12.0}, None),
    ],
)
def test_budgets(text: str, limits: dict[str, float], least: float | None) -> None:
    found = Budget.parse(text)
    assert (found.limits, found.least_db) == (limits, least)
    assert found.keeps_bits == (text == "best")


@pytest.mark.parametrize("text", ["", "W", "W4.5.1", "4", "0MB", "-3dB", "12 GB", "W4,W5", "best,", "W."])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ConfigError, match="not a budget"):
        Budget.parse(text)


def test_scipy_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scipy", "scipy.optimize", "scipy.sparse"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"vitquant\[tune\]"):
        problem([0.1] * 9).solve({})


@settings(max_examples=20, deadline=None)
@given(errors)
def test_the_ends_of_what_a_choice_costs(given_errors: list[float]) -> None:
    found = problem(given_errors)
    for name in ("mb", "gbop"):
        every = [found.cost(name, choice) for choice in itertools.product(*found.points)]
        assert found.coefficients_range(name) == pytest.approx((min(every), max(every)))
