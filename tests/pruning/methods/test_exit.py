"""exit: all visual tokens go, at any size; a budget keeps some, evenly spread."""

from __future__ import annotations

import torch
from twins import DECODER_KINDS, compare_decoder, decoder_evidence

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.exit import Config, Method
from foveate.pruning.plan import parse_plan
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=3), Budget(keep_ratio=0.4), Budget(keep_ratio=1.0)]


def test_equal_to_the_oracle() -> None:
    compared = 0
    for kind in DECODER_KINDS:
        for seed in range(8):
            evidence = decoder_evidence(seed, b=4, kind=kind, patches=5 + 6 * seed)
            compared += compare_decoder("exit", {}, evidence, BUDGETS)
    assert compared == 4 * 8 * len(DECODER_KINDS)


def test_every_budget_is_obeyed_and_spread() -> None:
    for visual in (1, 2, 3, 7, 24, 25):
        evidence = decoder_evidence(1, b=1)
        roles = torch.tensor([[0, *[1] * visual, 2, 0]])
        evidence = evidence._replace(token_role=roles, length=torch.tensor([visual + 3]))
        for tokens in range(1, visual + 1):
            chosen = Method(Config())(evidence, Asked(torch.zeros(1), torch.tensor([tokens])))
            kept = [i - 1 for i in chosen.order[0, : chosen.count[0]].tolist() if roles[0, i] == 1]
            assert len(kept) == tokens
            gaps = {b - a for a, b in zip([-1, *kept], kept, strict=False)}
            assert kept[-1] == visual - 1
            assert max(gaps) - min(gaps) <= 1


def test_the_default_layer() -> None:
    assert [cut.layer for cut in parse_plan(["exit"], 32).cuts] == [21]
    assert [cut.layer for cut in parse_plan(["exit@20"], 32).cuts] == [20]
