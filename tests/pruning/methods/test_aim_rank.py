"""aim-rank: equal to its oracle, the walk by hand, the paper's schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from twins import DECODER_KINDS, compare_decoder, decoder_evidence, decoder_facts

from foveate.pruning.methods.aim_rank import Config, importance
from foveate.pruning.plan import parse_plan
from foveate.tools.parity.facts import Budget
from foveate.tools.parity.methods import aim_rank as oracle

BUDGETS = [Budget(), Budget(keep_tokens=2), Budget(keep_ratio=0.4), Budget(keep_ratio=1.0)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"share": 0.0},
    {"share": 0.125, "temperature": 1.0, "iterations": 1},
    {"share": 0.875, "temperature": 0.5, "damping": 0.15, "iterations": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in DECODER_KINDS:
        for seed in range(6):
            evidence = decoder_evidence(seed, b=4, kind=kind)
            compared += compare_decoder("aim-rank", options, evidence, BUDGETS)
    assert compared > 180


@pytest.mark.parametrize("kind", ["random", "sharp"])
@pytest.mark.parametrize("options", OPTIONS[:1] + OPTIONS[2:], ids=str)
def test_importance_is_the_oracles(options: dict[str, Any], kind: str) -> None:
    """Also with padding behind a sequence, which takes no part; and deep below float32's squares."""
    evidence = decoder_evidence(4, b=3, kind=kind)
    ours = importance(evidence, Config(**options))
    for number in range(3):
        length = int(evidence.length[number])
        wanted = oracle.importance(options, decoder_facts(evidence, number))
        np.testing.assert_allclose(ours[number, :length], wanted, rtol=2e-3, atol=1e-36)


def test_all_text_and_no_visual_token_behind_the_last_step() -> None:
    cuts = parse_plan(["aim-rank"], 32).cuts
    assert [cut.layer for cut in cuts] == list(range(14, 22))
    assert [cut.params["share"] for cut in cuts] == [i / 8 for i in range(7, -1, -1)]
    evidence = decoder_evidence(1, b=1)
    facts = decoder_facts(evidence, 0)
    choice = oracle.decoder({"share": 0.0}, facts, Budget())
    assert [facts.roles[row] for row in choice.kept] == [role for role in facts.roles if role != 1]


def test_a_walk_by_hand() -> None:
    """Three rows, all logits equal: row i spreads evenly over 0..i."""
    evidence = decoder_evidence(1, b=1, kind="decode")._replace(
        query=torch.zeros(1, 4, 3, 6), key=torch.zeros(1, 2, 3, 6), length=torch.tensor([3]),
        token_role=torch.ones(1, 3, dtype=torch.int64),
    )  # fmt: skip
    found = importance(evidence, Config(iterations=1))
    torch.testing.assert_close(found[0], torch.tensor([1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3]) / 3)
    damped = importance(evidence, Config(iterations=1, damping=0.25))
    torch.testing.assert_close(damped, found * 0.75 + 0.25 / 3)
