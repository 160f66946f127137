"""layer-rank: equal to its oracle; shares count against what entered, and a schedule's steps fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import DECODER_KINDS, compare_decoder, decoder_evidence

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.layer_rank import Config, Method
from foveate.pruning.plan import parse_plan
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=2), Budget(keep_ratio=0.4), Budget(keep_ratio=1.0)]
OPTIONS: list[dict[str, Any]] = [{}, {"share": 0.125, "query": "last"}, {"share": 1.0}, {"share": 0.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in DECODER_KINDS:
        for seed in range(8):
            evidence = decoder_evidence(seed, b=4, kind=kind)
            compared += compare_decoder("layer-rank", options, evidence, BUDGETS)
    assert compared > 200


def test_ties_keep_the_lower_index() -> None:
    evidence = decoder_evidence(3, b=4, kind="equal", patches=20)
    assert compare_decoder("layer-rank", {}, evidence, BUDGETS, even_ties=True) == 4


@pytest.mark.parametrize(
    ("entered", "share", "left"), [(10, 0.25, 3), (10, 0.24, 2), (10, 0.0, 1), (64, 0.1, 6)]
)
def test_rounds_to_the_nearest(entered: int, share: float, left: int) -> None:
    evidence = decoder_evidence(2, b=1, patches=60)
    visual = int((evidence.token_role[0, : evidence.length[0]] == 1).sum())
    chosen = Method(Config(share=share))(
        evidence._replace(entered=torch.tensor([entered])),
        Asked(torch.zeros(1), torch.zeros(1, dtype=torch.int64)),
    )
    assert int(evidence.length[0] - chosen.count[0]) == visual - min(left, visual)


def test_a_schedule_names_its_layers() -> None:
    words = ["layer-rank@2:share=0.5", "layer-rank@4:share=0.25"]
    assert [cut.params["share"] for cut in parse_plan(words).cuts] == [0.5, 0.25]
    with pytest.raises(UsageError, match="needs a layer"):
        parse_plan(["layer-rank"], 32)
