"""fastv: equal to its oracle, the paper's setting, who is asked and who is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import DECODER_KINDS, compare_decoder, decoder_evidence

from foveate.pruning.attention import mean_attention
from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.fastv import Config, Method
from foveate.pruning.plan import parse_plan
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=1), Budget(keep_ratio=0.3), Budget(keep_tokens=99)]
OPTIONS: list[dict[str, Any]] = [{}, {"ratio": 0.2, "query": "text"}, {"ratio": 0.9, "query": "all"}]
NO_BUDGET = Asked(torch.zeros(1), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in DECODER_KINDS:
        for seed in range(8):
            compared += compare_decoder("fastv", options, decoder_evidence(seed, b=4, kind=kind), BUDGETS)
    assert compared > 200


@pytest.mark.parametrize("patches", [2, 30])
def test_ties_keep_the_lower_index(patches: int) -> None:
    evidence = decoder_evidence(3, b=4, kind="equal", patches=patches)
    assert compare_decoder("fastv", {}, evidence, BUDGETS, even_ties=True) == 4


def test_the_papers_setting() -> None:
    """K = 2 and half of the tokens, where nothing else is said."""
    (cut,) = parse_plan(["fastv"], 32).cuts
    assert (cut.name, cut.params) == ("decoder@2", {"ratio": 0.5, "query": "last"})


def test_only_the_last_row_decides() -> None:
    evidence = decoder_evidence(5, b=1)
    last = int(evidence.query_index.max())
    chosen = Method(Config())(evidence, NO_BUDGET)
    query = torch.zeros_like(evidence.query)
    query[:, :, last] = evidence.query[:, :, last]
    assert torch.equal(Method(Config())(evidence._replace(query=query), NO_BUDGET).order, chosen.order)
    row = mean_attention(evidence.query, evidence.key, torch.tensor([[last]]), evidence.scale)[0, 0]
    visual = (evidence.token_role[0] == 1).nonzero()[:, 0]
    visual = visual[visual < evidence.length[0]]
    best = visual[row[visual].topk((len(visual) + 1) // 2).indices].sort().values
    kept = chosen.order[0, : chosen.count[0]]
    assert kept[torch.isin(kept, visual)].tolist() == best.tolist()


def test_text_stays() -> None:
    evidence = decoder_evidence(6, b=3, kind="several images")
    chosen = Method(Config(ratio=0.01))(evidence, NO_BUDGET)
    for order, count, roles, length in zip(
        chosen.order, chosen.count, evidence.token_role, evidence.length, strict=True
    ):
        kept = set(order[:count].tolist())
        assert {i for i in range(int(length)) if roles[i] != 1} < kept
        assert sum(int(roles[i]) == 1 for i in kept) == 1
