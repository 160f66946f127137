"""prumerge, plain and plus: equal to the oracle, counts of the paper, exact budgets, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import TIES, exact
from torch import Tensor
from twins import compare_encoder, encoder_evidence, model_shape

from foveate.pruning import budget as budgets
from foveate.pruning.evidence import EncoderEvidence
from foveate.pruning.methods.prumerge import Config, Method, nearest
from foveate.pruning.selection import Selection
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [
    Budget(),
    Budget(keep_tokens=1),
    Budget(keep_ratio=0.3),
    Budget(keep_tokens=2),
    Budget(keep_tokens=99),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"plus": True},
    {"neighbours": 3},
    {"neighbours": 0, "layer": 1},
    {"plus": True, "neighbours": 5},
]
GRIDS = [(1, 1), (1, 2), (3, 3), (4, 5), (7, 6)]


@pytest.mark.parametrize("options", OPTIONS)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in ("random", "sharp", "clusters"):
        for seed, grid in enumerate(GRIDS * 2):
            evidence = encoder_evidence(seed, b=5, grid=grid, kind=kind)
            compared += compare_encoder("prumerge", options, evidence, BUDGETS, grid=grid)
    assert compared > 100


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("options", [{}, {"plus": True, "neighbours": 2}])
def test_ties_keep_the_lower_index(kind: str, options: dict[str, Any]) -> None:
    for seed in range(4):
        evidence = exact(encoder_evidence(seed, b=5, kind=kind))
        assert compare_encoder("prumerge", options, evidence, BUDGETS, even_ties=True) == 5


def choose(evidence: EncoderEvidence, tokens: int = 0, ratio: float = 0.0, **options: Any) -> Selection:
    b = len(evidence.features)
    method = Method(Config(**options))
    (layer,) = method.layers(model_shape().encoder)
    shown = evidence._replace(query={layer: evidence.query[layer]}, key={layer: evidence.key[layer]})
    budget = budgets.Budget(torch.full((b,), ratio), torch.full((b,), tokens))
    selection: Selection = method(shown, budget)
    return selection


@pytest.mark.parametrize("plus", [False, True])
def test_budgets_are_obeyed_exactly(plus: bool) -> None:
    evidence = encoder_evidence(5, b=3)
    for tokens in range(1, 23):
        assert choose(evidence, tokens, plus=plus).count.tolist() == [min(tokens, 20)] * 3
    assert choose(evidence, ratio=0.51, plus=plus).count.tolist() == [11] * 3


@pytest.mark.parametrize("plus", [False, True])
def test_a_budget_for_everything_leaves_everything_alone(plus: bool) -> None:
    evidence = encoder_evidence(6)
    chosen = choose(evidence, ratio=1.0, plus=plus)
    assert chosen.features is not None
    assert torch.equal(chosen.features, evidence.features)


def scored(scores: Tensor, grid: tuple[int, int]) -> EncoderEvidence:
    """Evidence whose CLS shares fall as ``scores [n]`` do (query 1, keys their logarithms)."""
    n = len(scores)
    evidence = encoder_evidence(0, b=1, grid=grid)
    query, key = torch.zeros(1, n + 1, 16), torch.zeros(1, n + 1, 16)
    query[:, :, 0] = 4.0  # width 16: the scale is 1/4
    key[0, 1:, 0] = scores.log()
    return evidence._replace(query=dict.fromkeys(range(4), query), key=dict.fromkeys(range(4), key))


@pytest.mark.parametrize(("outliers", "gap"), [(16, 12), (32, 6), (64, 3), (96, 2), (7, 27)])
def test_plus_samples_as_the_official_code_does(outliers: int, gap: int) -> None:
    """576 patches: the last is never sampled; every third of the outliers' mean distance is."""
    scores = torch.ones(576) + torch.rand(576, generator=torch.Generator().manual_seed(0)) * 0.01
    where = torch.randperm(576, generator=torch.Generator().manual_seed(1))[:outliers]
    scores[where] += 5
    base, plus = (choose(scored(scores, (24, 24)), plus=each) for each in (False, True))
    expected = set(where.tolist())
    for chosen, wanted in ((base, expected), (plus, expected | set(range(0, 575, gap)))):
        extra = max(set(range(576)) - wanted)
        assert set(chosen.order[0, : chosen.count[0]].tolist()) == wanted | {extra}


def test_nearest_takes_the_first_of_equals() -> None:
    likeness = torch.tensor(
        [[[9.0, 1.0, 1.0, 1.0], [0.0, 9.0, 2.0, 0.0], [1.0, 1.0, 9.0, 1.0], [3.0, 2.0, 1.0, 9.0]]]
    )
    assert nearest(likeness, 2).int().tolist() == [[[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]]
    assert nearest(likeness, 7).sum() == 12
    assert nearest(likeness, 0).sum() == 0
    assert nearest(torch.ones(1, 1, 1), 4).sum() == 0


def test_refusals() -> None:
    encoder = model_shape().encoder
    with pytest.raises(UsageError, match="CLS token"):
        Method(Config()).layers(encoder._replace(has_cls=False))
    with pytest.raises(UsageError, match="one grid"):
        Method(Config()).layers(encoder._replace(grid=None))
    with pytest.raises(UsageError, match="encoder layer 9"):
        Method(Config(layer=9)).layers(encoder)
