"""pyramiddrop: equal to its oracle, shares of what entered, the paper's stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import DECODER_KINDS, compare_decoder, decoder_evidence

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.pyramiddrop import Config, Method
from foveate.pruning.plan import parse_plan
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=2), Budget(keep_ratio=0.4), Budget(keep_ratio=1.0)]
OPTIONS: list[dict[str, Any]] = [{}, {"share": 0.25, "query": "text"}, {"share": 1.0}, {"share": 0.01}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in DECODER_KINDS:
        for seed in range(8):
            evidence = decoder_evidence(seed, b=4, kind=kind)
            compared += compare_decoder("pyramiddrop", options, evidence, BUDGETS)
    assert compared > 200


def test_ties_keep_the_lower_index() -> None:
    evidence = decoder_evidence(3, b=4, kind="equal", patches=20)
    assert compare_decoder("pyramiddrop", {}, evidence, BUDGETS, even_ties=True) == 4


def test_the_papers_stages() -> None:
    cuts = parse_plan(["pyramiddrop"], 32).cuts
    assert [(cut.layer, cut.params["share"]) for cut in cuts] == [(8, 0.5), (16, 0.25), (24, 0.125)]
    assert [cut.layer for cut in parse_plan(["pyramiddrop"], 6).cuts] == [2, 3, 4]


@pytest.mark.parametrize(
    ("entered", "share", "left"), [(576, 0.5, 288), (576, 0.125, 72), (63, 0.5, 31), (7, 0.125, 1)]
)
def test_a_share_of_what_entered_rounded_down(entered: int, share: float, left: int) -> None:
    """Whatever an earlier stage left: a stage takes nothing below its share, and adds nothing."""
    evidence = decoder_evidence(1, b=1, patches=40)
    for arriving in (1, left // 2, left, left + 1, entered):
        made = _picture(evidence, arriving)._replace(entered=torch.tensor([entered]))
        budget = Asked(torch.zeros(1), torch.zeros(1, dtype=torch.int64))
        chosen = Method(Config(share=share))(made, budget)
        kept = chosen.order[0, : chosen.count[0]]
        assert int((made.token_role[0, kept] == 1).sum()) == min(max(arriving, 1), left)


def _picture(evidence: Any, size: int) -> Any:
    """A prompt of one protected token, `size` visual ones and two rows that ask."""
    size, s = max(size, 1), max(size, 1) + 3
    draw = torch.Generator().manual_seed(size)

    def make(heads: int) -> torch.Tensor:
        return torch.randn(1, heads, s, 6, generator=draw)

    roles = torch.tensor([[0, *[1] * size, 2, 0]])
    return evidence._replace(
        query=make(4), key=make(2), query_plain=make(4), key_plain=make(2), hidden=torch.zeros(1, s, 4),
        token_role=roles, query_index=torch.tensor([[s - 2, s - 1]]), length=torch.tensor([s]),
    )  # fmt: skip
