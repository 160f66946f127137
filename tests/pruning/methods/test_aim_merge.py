"""aim-merge: equal to the oracle, the published schedules, exact budgets, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import TIES, exact
from torch import Tensor
from twins import asked_for, build, compare_encoder, encoder_evidence, model_shape

from foveate.pruning import budget as budgets
from foveate.pruning.evidence import EncoderEvidence
from foveate.pruning.methods.aim_merge import Config, Method
from foveate.pruning.selection import Selection
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [
    *(Budget(), Budget(keep_tokens=1), Budget(keep_ratio=0.5), Budget(keep_tokens=7)),
    *(Budget(keep_tokens=99), Budget(keep_tokens=13)),
]
OPTIONS: list[dict[str, Any]] = [{}, {"metric": "feature"}, {"layer": 1, "ratio": 0.1}, {"ratio": 1.0}]
GRIDS = [(1, 1), (1, 2), (1, 3), (3, 3), (4, 5), (7, 6)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cls", [True, False])
def test_equal_to_the_oracle(options: dict[str, Any], cls: bool) -> None:
    compared = 0
    for kind in ("random", "clusters"):
        for seed, grid in enumerate(GRIDS * 2):
            evidence = encoder_evidence(seed, b=6, grid=grid, kind=kind, cls=cls)
            compared += compare_encoder("aim-merge", options, evidence, BUDGETS, grid=grid)
    assert compared > 130


@pytest.mark.parametrize("kind", TIES)
def test_ties_keep_the_lower_index(kind: str) -> None:
    """One round: behind it, keys are means, and equal only up to rounding."""
    asked = [Budget(keep_ratio=share) for share in (0.5, 0.6, 0.7, 0.85, 0.9, 1.0)]
    for seed in range(4):
        evidence = exact(encoder_evidence(seed, b=6, kind=kind))
        assert compare_encoder("aim-merge", {}, evidence, asked, even_ties=True) == 6


def choose(evidence: EncoderEvidence, tokens: int, grid: tuple[int, int], **options: Any) -> Selection:
    method = build("aim-merge", "encoder", options, grid=grid)
    b = len(evidence.features)
    budget = budgets.Budget(torch.zeros(b), torch.full((b,), tokens))
    selection: Selection = method(asked_for(method, evidence, grid), budget)
    return selection


def test_budgets_are_obeyed_exactly() -> None:
    evidence = encoder_evidence(5, b=3)
    for tokens in range(1, 23):
        assert choose(evidence, tokens, (4, 5)).count.tolist() == [min(tokens, 20)] * 3


def test_a_budget_for_everything_leaves_everything_alone() -> None:
    evidence = encoder_evidence(6)
    assert torch.equal(features(choose(evidence, 20, (4, 5))), evidence.features)


def features(chosen: Selection) -> Tensor:
    assert chosen.features is not None
    return chosen.features


def test_half_is_the_odd_places() -> None:
    grid = (4, 6)
    chosen = choose(encoder_evidence(1, b=2, grid=grid), 12, grid)
    assert chosen.order[:, :12].tolist() == [list(range(1, 24, 2))] * 2
    quarter = choose(encoder_evidence(1, b=2, grid=grid), 6, grid)
    assert quarter.order[:, :6].tolist() == [list(range(3, 24, 4))] * 2


@pytest.mark.parametrize(("tokens", "removed"), [(252, (288, 36)), (72, (288, 144, 72))])
def test_the_published_schedules(tokens: int, removed: tuple[int, ...]) -> None:
    """As the official code takes them: so many sources merged in each round."""
    grid = (24, 24)
    evidence = encoder_evidence(2, b=1, grid=grid)
    rows, key = evidence.features[0].double(), evidence.key[3][0, 1:].double()
    place = torch.arange(576)
    for number in removed:
        unit = key / key.norm(dim=-1, keepdim=True)
        like, partner = (unit[0::2] @ unit[1::2].T).max(dim=-1)
        best = like.argsort(descending=True)[:number]
        joined = torch.zeros(len(unit) // 2, len(unit) // 2).double()
        joined[partner[best], best] = 1
        total = 1 + joined.sum(dim=1, keepdim=True)
        stay = torch.ones(len(unit), dtype=torch.bool)
        stay[2 * best] = False
        merged = [each.clone() for each in (rows, key)]
        for each in merged:
            each[1::2] = (each[1::2] + joined @ each[0::2]) / total
        rows, key, place = merged[0][stay], merged[1][stay], place[stay]
    chosen = choose(evidence, tokens, grid)
    assert chosen.order[0, : int(chosen.count)].tolist() == place.tolist()
    torch.testing.assert_close(features(chosen)[0, place], rows.float(), rtol=1e-5, atol=1e-5)


def test_refusals() -> None:
    encoder = model_shape().encoder
    assert Method(Config()).layers(encoder._replace(has_cls=False)) == (3,)
    assert Method(Config(metric="feature")).layers(encoder) == ()
    with pytest.raises(UsageError, match="one grid"):
        Method(Config()).layers(encoder._replace(grid=None))
    with pytest.raises(UsageError, match="encoder layer 9"):
        Method(Config(layer=9)).layers(encoder)
    with pytest.raises(UsageError, match="only with metric=key"):
        Config(layer=1, metric="feature")
