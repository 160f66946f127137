"""uniform: equal to the oracle at both sites, even by construction, exact budgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import (
    DECODER_KINDS,
    build,
    compare_decoder,
    compare_encoder,
    decoder_evidence,
    encoder_evidence,
    model_shape,
)

from foveate.pruning import budget as budgets
from foveate.pruning.methods.uniform import Config, Method, dither, spaced
from foveate.tools.parity.facts import Budget

BUDGETS = [
    Budget(),
    Budget(keep_tokens=1),
    Budget(keep_ratio=0.3),
    Budget(keep_tokens=99),
    Budget(keep_tokens=5),
]
GRIDS = [(1, 1), (1, 2), (3, 1), (4, 4), (4, 5), (7, 6), (24, 24)]


@pytest.mark.parametrize("options", [{}, {"pattern": "line"}, {"ratio": 1.0}, {"ratio": 0.07}])
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    for seed, grid in enumerate(GRIDS):
        evidence = encoder_evidence(seed, b=5, grid=grid)
        assert compare_encoder("uniform", options, evidence, BUDGETS, grid=grid) == 5


def test_without_a_grid_it_goes_along_the_line() -> None:
    for seed, grid in enumerate(GRIDS):
        evidence = encoder_evidence(seed, b=5, grid=grid)
        method = Method(Config())
        method.build(model_shape()._replace(encoder=model_shape().encoder._replace(grid=None)))
        assert compare_encoder("uniform", {}, evidence, BUDGETS, grid=None, method=method) == 5


@pytest.mark.parametrize("kind", DECODER_KINDS)
def test_equal_to_the_oracle_in_the_decoder(kind: str) -> None:
    for seed in range(6):
        evidence = decoder_evidence(seed, b=5, kind=kind)
        assert compare_decoder("uniform", {"ratio": 0.4}, evidence, BUDGETS) == 5


def kept(grid: tuple[int, int], tokens: int) -> set[tuple[int, int]]:
    method = build("uniform", "encoder", grid=grid)
    budget = budgets.Budget(torch.zeros(1), torch.full((1,), tokens))
    order, count, *_ = method(encoder_evidence(0, b=1, grid=grid), budget)
    return {divmod(int(i), grid[1]) for i in order[0, : int(count)]}


def test_a_quarter_is_every_second_row_and_column() -> None:
    assert kept((24, 24), 144) == {(r, c) for r in range(0, 24, 2) for c in range(0, 24, 2)}
    assert kept((24, 24), 36) == {(r, c) for r in range(0, 24, 4) for c in range(0, 24, 4)}
    assert kept((8, 8), 32) == {(r, c) for r in range(8) for c in range(8) if (r + c) % 2 == 0}


def test_a_smaller_budget_keeps_a_subset() -> None:
    for tokens in range(1, 42):
        assert kept((6, 7), tokens) < kept((6, 7), tokens + 1)


@pytest.mark.parametrize("tokens", [64, 128, 192])
def test_every_region_gets_its_share(tokens: int) -> None:
    """Of a ninth of the picture stays about a ninth of the tokens."""
    chosen = kept((24, 24), tokens)
    for top in range(0, 24, 8):
        for left in range(0, 24, 8):
            inside = sum(top <= r < top + 8 and left <= c < left + 8 for r, c in chosen)
            assert abs(inside - tokens / 9) <= 1


def test_no_two_cells_have_one_rank() -> None:
    for grid in GRIDS:
        index = torch.arange(grid[0] * grid[1])[None]
        assert dither(index, grid).unique().numel() == index.numel()


def test_stretches_differ_by_one_at_most() -> None:
    for size in range(1, 40):
        for count in range(1, size + 1):
            place = torch.arange(size)[None]
            where = spaced(place, torch.tensor([size]), torch.tensor([count]))[0].nonzero()[:, 0]
            assert len(where) == count
            gaps = where.diff()
            assert gaps.numel() == 0 or int(gaps.max() - gaps.min()) <= 1
