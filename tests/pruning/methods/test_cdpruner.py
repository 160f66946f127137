"""cdpruner: equal to its oracle, relevance against diversity, rank-deficient pictures, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from twins import ENCODER_KINDS, build, compare_encoder, encoder_evidence

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.cdpruner import Config
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=1), Budget(keep_ratio=0.3), Budget(keep_tokens=99)]
GRIDS = [(1, 1), (1, 2), (3, 3), (4, 5), (7, 6)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"relevance": "exp", "theta": 0.7},
    {"negative": True, "ratio": 0.6},
    {"relevance": "exp", "theta": 0.0, "ratio": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for seed, grid in enumerate(GRIDS * 8):
        evidence = encoder_evidence(seed, b=4, grid=grid)
        compared += compare_encoder("cdpruner", options, evidence, BUDGETS, grid=grid)
    assert compared > 140


def test_more_tokens_than_dimensions() -> None:
    """42 tokens of 24 dimensions: the last ones are spanned, and come by relevance."""
    budgets = [Budget(keep_tokens=k) for k in (24, 25, 30, 41)]
    compared = sum(
        compare_encoder("cdpruner", {}, encoder_evidence(seed, b=4, grid=(7, 6)), budgets, grid=(7, 6))
        for seed in range(12)
    )
    assert compared > 20


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_any_budget_is_obeyed(kind: str) -> None:
    method, evidence = build("cdpruner", "encoder"), encoder_evidence(1, b=5, kind=kind)
    asked = Asked(torch.tensor([0.0, 0.5, 0.0, 1.0, 0.0]), torch.tensor([3, 0, 0, 0, 50]))
    chosen = method(evidence, asked)
    assert chosen.count.tolist() == [3, 10, 3, 20, 20]
    assert [sorted(row) for row in chosen.order.tolist()] == [list(range(20))] * 5


@pytest.mark.parametrize("kind", ["equal", "zero"])
def test_all_alike_keeps_the_first(kind: str) -> None:
    evidence = encoder_evidence(0, b=4, kind=kind)
    if kind == "equal":  # a power of two has an exact norm
        evidence = evidence._replace(projected=torch.full((4, 20, 16), 0.5), prompt=torch.ones(4, 16))
    assert compare_encoder("cdpruner", {}, evidence, BUDGETS, even_ties=True) == 4


def test_without_words_diversity_decides() -> None:
    """A prompt without words has a zero mean: every token is equally relevant."""
    evidence = encoder_evidence(5, b=2)
    asked = Asked(torch.zeros(2), torch.tensor([7, 7]))
    silent = build("cdpruner", "encoder")(evidence._replace(prompt=torch.zeros(2, 24)), asked)
    plain = build("cdpruner", "encoder", {"relevance": "exp", "theta": 0.0})(evidence, asked)
    assert torch.equal(silent.order, plain.order)


def test_relevance_decides_among_different_tokens_and_diversity_among_alike() -> None:
    draw = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 5)  # four things, five tokens each, all of them unlike the others
    rows = np.eye(8)[group] + 0.02 * draw.normal(size=(20, 8))
    words = np.eye(8)[2] + 0.5 * np.eye(8)[0]
    evidence = encoder_evidence(0, b=1)._replace(
        projected=torch.from_numpy(rows[None]).float(), prompt=torch.from_numpy(words[None]).float()
    )
    order = build("cdpruner", "encoder")(evidence, Asked(torch.zeros(1), torch.tensor([2]))).order
    assert sorted(group[order[0, :2]]) == [0, 2]


def test_items_do_not_mix() -> None:
    """Relevance is scaled per item: the same item chooses the same, alone and next to others."""
    evidence = encoder_evidence(3, b=3)
    method = build("cdpruner", "encoder")
    both = method(evidence, Asked(torch.zeros(3), torch.tensor([6, 11, 3])))
    assert evidence.projected is not None
    assert evidence.prompt is not None
    for i, k in enumerate((6, 11, 3)):
        one = slice(i, i + 1)
        given = evidence._replace(
            projected=evidence.projected[one], prompt=evidence.prompt[one], tile=evidence.tile[one]
        )
        alone = method(given, Asked(torch.zeros(1), torch.tensor([k])))
        assert torch.equal(alone.order[0], both.order[i])


def test_refusals() -> None:
    with pytest.raises(UsageError, match="theta"):
        Config(theta=0.3)
    with pytest.raises(UsageError, match="theta"):
        Config(relevance="exp", theta=1.0)
