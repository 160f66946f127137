"""dyvte: a gate lets all visual tokens stay, or none; a budget switches it off."""

from __future__ import annotations

import pytest
import torch
from twins import DECODER_KINDS, HIDDEN, build, compare_decoder, decoder_evidence, model_shape

from foveate.pruning.attention import query_rows
from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.dyvte import Config, Method, question_state
from foveate.pruning.plan import parse_plan
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=3), Budget(keep_ratio=0.4), Budget(keep_ratio=1.0)]
NONE = Asked(torch.zeros(1), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("kind", DECODER_KINDS)
def test_equal_to_the_oracle(kind: str) -> None:
    compared = 0
    for seed in range(10):
        evidence = decoder_evidence(seed, b=4, kind=kind, patches=5 + 2 * seed)
        compared += compare_decoder("dyvte", {}, evidence)
        compared += compare_decoder("dyvte", {"margin": 0.3, "hidden": 3}, evidence)
        compared += compare_decoder("dyvte", {}, evidence, BUDGETS)
    assert compared >= 110


def test_it_is_all_or_none_and_both_happen() -> None:
    method, seen = build("dyvte", "decoder"), set()
    for seed in range(40):
        evidence = decoder_evidence(seed, b=1)
        chosen = method(evidence, NONE)
        kept = chosen.order[0, : chosen.count[0]]
        roles = evidence.token_role[0, : evidence.length[0]]
        left = int((evidence.token_role[0, kept] == 1).sum())
        assert left in (0, int((roles == 1).sum()))
        assert int((evidence.token_role[0, kept] != 1).sum()) == int((roles != 1).sum())
        seen.add(left > 0)
    assert seen == {True, False}


def test_the_margin_holds_the_exit_back() -> None:
    careful = build("dyvte", "decoder", {"margin": 1e6})
    eager = build("dyvte", "decoder", {"margin": -1e6})
    evidence = decoder_evidence(3, b=3)
    budget = Asked(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    assert careful(evidence, budget).count.tolist() == evidence.length.tolist()
    visual = [int((evidence.token_role[i, : evidence.length[i]] == 1).sum()) for i in range(3)]
    left = [int(n) - v for n, v in zip(evidence.length, visual, strict=True)]
    assert eager(evidence, budget).count.tolist() == left


def test_neither_padding_nor_the_image_reaches_the_gate() -> None:
    method, evidence = build("dyvte", "decoder", {"margin": 0.01}), decoder_evidence(5, b=2)
    place = torch.arange(evidence.hidden.shape[1])
    asking = (evidence.query_index.unsqueeze(-1) == place).any(dim=1).unsqueeze(-1)  # b s 1
    noise = torch.randn(evidence.hidden.shape, generator=torch.Generator().manual_seed(1)) * 50
    other = evidence._replace(hidden=torch.where(asking, evidence.hidden, noise))
    budget = Asked(torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(method(evidence, budget).order, method(other, budget).order)


def test_a_question_of_one_row_has_a_zero_mean() -> None:
    evidence = decoder_evidence(2, b=1)
    evidence = evidence._replace(query_index=torch.tensor([[int(evidence.length[0]) - 1, -1]]))
    seen = question_state(evidence.hidden, evidence.query_index, query_rows(evidence, "last"))
    assert not seen[0, :HIDDEN].any()
    assert torch.equal(seen[0, HIDDEN:], evidence.hidden[0, evidence.length[0] - 1])


def test_a_gate_is_2048_wide_on_a_7b_model() -> None:
    method = Method(Config())
    with torch.device("meta"):
        method.build(model_shape()._replace(hidden_size=4096))
    assert {name: tuple(p.shape) for name, p in method.named_parameters()} == {
        "gate.fc1.weight": (8192, 2048),
        "gate.fc2.weight": (2048, 2),
    }


def test_its_schedule() -> None:
    assert [cut.layer for cut in parse_plan(["dyvte"], 32).cuts] == [11, 16, 21, 27]
    assert [cut.layer for cut in parse_plan(["dyvte"], 6).cuts] == [2, 3, 4, 5]
    assert [cut.layer for cut in parse_plan(["dyvte@1+5"], 6).cuts] == [1, 5]
    with pytest.raises(UsageError):
        parse_plan(["dyvte:hidden=0"], 6)
