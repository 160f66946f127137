"""visionzip: equal to the oracle, the published splits, exact budgets, encoders without CLS, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import TIES, exact
from twins import compare_encoder, encoder_evidence, model_shape

from foveate.pruning import budget as budgets
from foveate.pruning.evidence import EncoderEvidence
from foveate.pruning.methods.visionzip import Config, Method, every_nth
from foveate.pruning.selection import Selection
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [
    *(Budget(), Budget(keep_tokens=1), Budget(keep_ratio=0.5), Budget(keep_tokens=7)),
    *(Budget(keep_tokens=99), Budget(keep_tokens=13)),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"context": 0.5, "ratio": 0.6},
    {"context": 1.0, "layer": 0},
    {"context": 0.0},
    {"score": "received", "context": 0.3},
]
GRIDS = [(1, 1), (1, 2), (3, 3), (4, 5), (7, 6)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cls", [True, False])
def test_equal_to_the_oracle(options: dict[str, Any], cls: bool) -> None:
    if not cls:
        options = {**options, "score": "received"}
    compared = 0
    for kind in ("random", "sharp", "clusters"):
        for seed, grid in enumerate(GRIDS * 2):
            evidence = encoder_evidence(seed, b=6, grid=grid, kind=kind, cls=cls)
            compared += compare_encoder("visionzip", options, evidence, BUDGETS, grid=grid)
    assert compared > 130


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("options", [{}, {"context": 0.6, "ratio": 0.8}, {"score": "received"}])
def test_ties_keep_the_lower_index(kind: str, options: dict[str, Any]) -> None:
    for seed in range(4):
        evidence = exact(encoder_evidence(seed, b=6, kind=kind))
        assert compare_encoder("visionzip", options, evidence, BUDGETS, even_ties=True) == 6


def choose(evidence: EncoderEvidence, tokens: int = 0, ratio: float = 0.0, **options: Any) -> Selection:
    b = len(evidence.features)
    method = Method(Config(**options))
    (layer,) = method.layers(model_shape().encoder)
    shown = evidence._replace(query={layer: evidence.query[layer]}, key={layer: evidence.key[layer]})
    budget = budgets.Budget(torch.full((b,), ratio), torch.full((b,), tokens))
    selection: Selection = method(shown, budget)
    return selection


def test_budgets_are_obeyed_exactly() -> None:
    evidence = encoder_evidence(5, b=3)
    for context in (0.0, 0.15625, 0.5, 1.0):
        for tokens in range(1, 23):
            assert choose(evidence, tokens, context=context).count.tolist() == [min(tokens, 20)] * 3


def test_a_budget_for_everything_leaves_everything_alone() -> None:
    evidence = encoder_evidence(6)
    chosen = choose(evidence, ratio=1.0)
    assert chosen.features is not None
    assert torch.equal(chosen.features, evidence.features)


@pytest.mark.parametrize(("total", "contextual"), [(64, 10), (128, 20), (192, 30)])
def test_the_published_splits(total: int, contextual: int) -> None:
    evidence = encoder_evidence(0, b=1, grid=(24, 24))
    chosen = choose(evidence, total)
    assert chosen.features is not None
    changed = (chosen.features != evidence.features).any(dim=-1).gather(1, chosen.order[:, :total])
    assert changed.sum() == contextual  # each target got somebody


def test_targets_stand_at_even_distances() -> None:
    rest = torch.tensor([[True, False, True, True, True, False, True, True, True]])
    assert every_nth(rest, torch.tensor([3])).nonzero()[:, 1].tolist() == [0, 3, 6]
    assert every_nth(rest, torch.tensor([2])).nonzero()[:, 1].tolist() == [0, 4]
    assert every_nth(rest, torch.tensor([7])).nonzero()[:, 1].tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert not every_nth(rest, torch.tensor([0])).any()


def test_refusals() -> None:
    encoder = model_shape().encoder
    blind = encoder._replace(has_cls=False)
    with pytest.raises(UsageError, match="score=received"):
        Method(Config()).layers(blind)
    assert Method(Config(score="received")).layers(blind) == (2,)
    with pytest.raises(UsageError, match="context=0"):
        Method(Config()).layers(encoder._replace(grid=None))
    assert Method(Config(context=0.0)).layers(encoder._replace(grid=None)) == (2,)
    with pytest.raises(UsageError, match="encoder layer 9"):
        Method(Config(layer=9)).layers(encoder)
    windows = encoder._replace(global_layers=(1,))
    assert Method(Config(score="received")).layers(windows) == (1,)
    with pytest.raises(UsageError, match="whole tile"):
        Method(Config(score="received", layer=2)).layers(windows)
