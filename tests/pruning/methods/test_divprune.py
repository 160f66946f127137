"""divprune: equal to its oracle, the first token, diversity, ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from twins import ENCODER_KINDS, build, compare_encoder, encoder_evidence

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.greedy import cosine_matrix
from foveate.pruning.methods.divprune import most_alone
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=1), Budget(keep_ratio=0.3), Budget(keep_tokens=99)]
GRIDS = [(1, 1), (1, 2), (3, 3), (4, 5), (7, 6)]


@pytest.mark.parametrize("ratio", [0.098, 0.6])
def test_equal_to_the_oracle(ratio: float) -> None:
    compared = 0
    for kind in ("random", "clusters"):
        for seed, grid in enumerate(GRIDS * 5):
            evidence = encoder_evidence(seed, b=4, grid=grid, kind=kind)
            if kind == "clusters":  # the made-up projection knows no clusters; these rows do
                evidence = evidence._replace(projected=evidence.features)
            compared += compare_encoder("divprune", {"ratio": ratio}, evidence, BUDGETS, grid=grid)
    assert compared > 180


@pytest.mark.parametrize("kind", ["equal", "zero"])
def test_all_alike_keeps_the_first(kind: str) -> None:
    for seed in range(4):
        evidence = encoder_evidence(seed, b=4, kind=kind)
        if kind == "equal":  # a power of two has an exact norm
            evidence = evidence._replace(projected=torch.full_like(evidence.features, 0.5))
        assert compare_encoder("divprune", {}, evidence, BUDGETS, even_ties=True) == 4


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_any_budget_is_obeyed(kind: str) -> None:
    method, evidence = build("divprune", "encoder"), encoder_evidence(1, b=5, kind=kind)
    asked = Asked(torch.tensor([0.0, 0.5, 0.0, 1.0, 0.0]), torch.tensor([3, 0, 0, 0, 50]))
    assert method(evidence, asked).count.tolist() == [3, 10, 2, 20, 20]


def test_the_first_token_is_the_one_without_neighbours() -> None:
    pairs = torch.eye(4).repeat_interleave(2, dim=0)
    alone = torch.tensor([[0.0, 0.1, 0.2, -3.0]])
    rows = torch.cat([pairs, alone, pairs])
    assert most_alone(cosine_matrix(rows.unsqueeze(0))).tolist() == [8]


def test_one_of_each_kind_stays() -> None:
    """Four directions, twenty tokens: four kept tokens show all four."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        kinds = np.concatenate([np.arange(4), draw.integers(0, 4, 16)])
        draw.shuffle(kinds)
        rows = np.eye(16)[kinds] + 0.01 * draw.normal(size=(20, 16))
        evidence = encoder_evidence(0, b=1)._replace(projected=torch.from_numpy(rows[None]).float())
        chosen = build("divprune", "encoder")(evidence, Asked(torch.zeros(1), torch.tensor([4])))
        assert sorted(kinds[chosen.order[0, :4]]) == [0, 1, 2, 3]


def test_length_does_not_matter() -> None:
    method, evidence = build("divprune", "encoder"), encoder_evidence(2, b=1)
    asked = Asked(torch.zeros(1), torch.tensor([6]))
    scaled = evidence.projected * 2.0 ** torch.arange(20).unsqueeze(1)  # type: ignore[operator]
    assert torch.equal(
        method(evidence, asked).order, method(evidence._replace(projected=scaled), asked).order
    )
