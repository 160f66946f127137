"""Budgets: what a request may ask for, and how a fraction becomes a whole number of tokens."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.pruning.budget import Budget, ratio_count, resolve_count, scaled_count


def resolve(ratio: float, tokens: int, rule: int, size: int, **limits: Any) -> int:
    budget = Budget(torch.tensor([ratio]), torch.tensor([tokens]))
    return int(resolve_count(budget, torch.tensor([rule]), torch.tensor([size]), **limits))


@pytest.mark.parametrize(
    ("ratio", "tokens", "rule", "wanted"),
    [
        (0.0, 0, 40, 40),  # nothing asked: the rule
        (0.25, 0, 40, 144),
        (0.25, 7, 40, 7),  # tokens win
        (0.0, 9999, 40, 576),
        (1.0, 0, 40, 576),
        (3.0, 0, 40, 576),
        (1e-6, 0, 40, 1),
        (0.0, 0, 9999, 576),
        (0.0, 0, 0, 1),
    ],
)
def test_who_decides(ratio: float, tokens: int, rule: int, wanted: int) -> None:
    assert resolve(ratio, tokens, rule, 576) == wanted


def test_limits_shape_the_rule_only() -> None:
    limits = {"min_keep": 16, "max_keep": 64, "round_to": 32}
    assert resolve(0, 0, 3, 576, **limits) == 32
    assert resolve(0, 0, 33, 576, **limits) == 64
    assert resolve(0, 0, 300, 576, **limits) == 64
    assert resolve(0, 5, 300, 576, **limits) == 5
    assert resolve(0.5, 0, 300, 576, **limits) == 288
    assert resolve(0, 0, 3, 10, **limits) == 10
    assert resolve(0, 0, 3, 576, min_keep=16) == 16


@pytest.mark.parametrize(("ratio", "tokens"), [(0.0, 0), (0.5, 0), (0.0, 4)])
def test_no_candidates(ratio: float, tokens: int) -> None:
    assert resolve(ratio, tokens, 0, 0, min_keep=16, round_to=4) == 0


def test_rows_are_independent_and_size_may_be_a_number() -> None:
    budget = Budget(torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0, 0, 2]))
    count = resolve_count(budget, torch.tensor([3, 3, 3]), 9)
    assert count.tolist() == [5, 3, 2]
    assert count.dtype == torch.int64
    assert budget.given().tolist() == [True, False, True]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 1000), st.sampled_from([1, 3, 7, 10, 24, 100, 576, 577, 2880, 4096, 10000]))
def test_ratio_is_the_exact_ceiling_for_thousandths(part: int, size: int) -> None:
    wanted = math.ceil(Fraction(part, 1000) * size)
    assert ratio_count(torch.tensor([part / 1000]), torch.tensor([size])).tolist() == [wanted]
    assert ratio_count(part / 1000, torch.tensor([size])).tolist() == [wanted]


@pytest.mark.parametrize(("ratio", "size", "wanted"), [(0.7, 10, 7), (0.008, 375, 3), (0.017, 3000, 51)])
def test_rounding_noise_adds_no_token(ratio: float, size: int, wanted: int) -> None:
    """All but the first come out one too many as ceil(ratio * size) in float32."""
    assert ratio_count(torch.tensor([ratio]), torch.tensor([size])).tolist() == [wanted]


@pytest.mark.parametrize(("count", "scale", "wanted"), [(5, 1.3, 7), (50, 0.53, 27), (450, 0.13, 59)])
def test_rounding_noise_loses_no_half(count: int, scale: float, wanted: int) -> None:
    assert scaled_count(torch.tensor([count]), scale).tolist() == [wanted]


def test_every_thousandth_of_every_size() -> None:
    sizes = torch.arange(1, 4097)
    for part in range(1, 1001, 3):
        wanted = -(-part * sizes // 1000)
        assert torch.equal(ratio_count(torch.tensor(part / 1000), sizes), wanted), part


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 400), st.integers(0, 4096))
def test_scaling_rounds_half_up_for_hundredths(part: int, count: int) -> None:
    wanted = math.floor(Fraction(part, 100) * count + Fraction(1, 2))
    assert scaled_count(torch.tensor([count]), part / 100).tolist() == [wanted]
