"""The scaling law: its fit to the authors' table, its optimum, and what it says of budgets."""

from __future__ import annotations

import math

import pytest

from foveate.tools.scaling_law import (
    LAWS,
    MEASURED,
    TOKENS,
    Law,
    best_tokens,
    choices,
    curve,
    fit,
    parameters_like,
)

LAW = LAWS["understanding"]


def test_the_constants_are_the_least_squares_fit_to_the_authors_table() -> None:
    found, squares = fit(MEASURED, LAW.alpha, LAW.beta)
    assert found.scale == pytest.approx(LAW.scale, abs=5e-4)
    assert found.floor == pytest.approx(LAW.floor, abs=5e-4)
    assert math.sqrt(squares / (len(MEASURED) * len(TOKENS))) < 0.005  # half a point of accuracy


def test_fit_finds_a_law_again() -> None:
    true = Law(0.1, 0.03, 0.6, 0.05)
    table = {n: tuple(1 - true.error(n, v) for v in TOKENS) for n in (1.0, 3.0, 10.0)}
    found, squares = fit(table, 0.1, 0.03)
    assert (found.scale, found.floor) == (pytest.approx(0.6), pytest.approx(0.05))
    assert squares < 1e-20


def test_the_optimum_is_the_least_error_along_a_fixed_cost() -> None:
    for text in (10.0, 50.0, 200.0):
        best = best_tokens(LAW, text)
        cost = 7 * (text + best)
        errors = {v: LAW.error(cost / (text + v), v) for v in (best * 0.7, best, best * 1.4)}
        assert min(errors, key=errors.__getitem__) == best
    assert best_tokens(LAW, 50) == pytest.approx(0.015 * 50 / 0.062)
    assert best_tokens(LAW, 0) == 1
    assert best_tokens(LAWS["reading"], 50) == math.inf


def test_choices_stay_within_the_cost_and_come_best_first() -> None:
    found = choices(LAW, 7 * (50 + 576) / 4, 50, (0.5, 1.8, 4, 7, 14, 400))
    assert [each.billions for each in found] == [14, 7, 4, 1.8, 0.5]  # 400 billion take no token
    assert all(each.cost <= 7 * 626 / 4 + 1e-9 for each in found)
    assert [each.error for each in found] == sorted(each.error for each in found)
    assert all(1 <= each.tokens <= 576 for each in found)
    reading = choices(LAWS["reading"], 7 * 626 / 4, 50, (4, 7, 14))
    assert reading[0].tokens == max(each.tokens for each in reading)  # there tokens come first


def test_equal_errors_for_equal_models() -> None:
    like = parameters_like(LAW, 7, 36, 576)
    assert LAW.error(like, 576) == pytest.approx(LAW.error(7, 36))
    errors = [each.error for each in curve(LAW, 7, TOKENS, 50)]
    assert errors == sorted(errors, reverse=True)
