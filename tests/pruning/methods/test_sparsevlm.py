"""sparsevlm: equal to its oracle, the paper's schedule, raters, recycling, who is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from twins import DECODER_KINDS, compare_decoder, decoder_evidence, decoder_facts

from foveate.pruning.attention import chunk_masks
from foveate.pruning.budget import Budget as Asked
from foveate.pruning.evidence import DecoderEvidence
from foveate.pruning.methods.sparsevlm import Config, Method, clusters, raters, recycled
from foveate.pruning.peaks import merge_peaks
from foveate.pruning.plan import parse_plan
from foveate.tools.parity.facts import Budget
from foveate.tools.parity.methods import sparsevlm as oracle

BUDGETS = [Budget(), Budget(keep_tokens=2), Budget(keep_ratio=0.4), Budget(keep_tokens=99)]
OPTIONS: list[dict[str, Any]] = [{}, {"share": 0.1}, {"recycle": False, "share": 0.3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in DECODER_KINDS:
        for seed in range(8):
            evidence = decoder_evidence(seed, b=4, kind=kind, patches=50 if seed % 2 else 12)
            compared += compare_decoder("sparsevlm", options, evidence, BUDGETS)
    assert compared > 200


def test_ties_keep_the_lower_index() -> None:
    """Nobody is above the mean: all rate; every distance is zero: the first member is the centre."""
    for patches in (2, 30):
        evidence = decoder_evidence(3, b=4, kind="equal", patches=patches)
        assert compare_decoder("sparsevlm", {}, evidence, BUDGETS, even_ties=True) == 4


def test_the_papers_schedule() -> None:
    cuts = parse_plan(["sparsevlm"], 32).cuts
    assert [cut.layer for cut in cuts] == [3, 7, 16]
    entered = torch.tensor([576])
    kept = [int(entered * cut.params["share"]) for cut in cuts]
    assert kept == [300, 200, 110]
    average = (3 * 576 + 4 * 300 + 9 * 200 + 16 * 110) / 32
    assert 192 <= average <= 204  # merged tokens come on top
    assert recycled(torch.tensor([276, 1, 0])).tolist() == [83, 1, 0]
    assert clusters(torch.tensor([276, 1, 0])).tolist() == [9, 1, 0]


def sequence(patches: int, text: int, seed: int = 0) -> DecoderEvidence:
    draw = np.random.default_rng(seed)
    s = 1 + patches + text
    plain = torch.from_numpy(draw.normal(size=(4, 1, 2, s, 6))).float()
    roles = torch.tensor([[0, *[1] * patches, *[2] * text]])
    rows = torch.from_numpy(draw.normal(size=(2, 1, s, 16))).float()
    return DecoderEvidence(
        *plain, rows[0], roles, torch.arange(1 + patches, s).unsqueeze(0), torch.tensor([s]), 0.4,
        entered=torch.tensor([patches]), embedded=rows[1],
    )  # fmt: skip


def test_every_budget_is_obeyed() -> None:
    """Merged tokens count."""
    for patches, text in ((1, 3), (7, 2), (60, 9)):
        evidence = sequence(patches, text)
        for tokens in range(1, patches + 3):
            chosen = Method(Config())(evidence, Asked(torch.zeros(1), torch.tensor([tokens])))
            assert chosen.count.tolist() == [1 + text + min(tokens, patches)]


def test_raters_are_the_words_that_match_the_image() -> None:
    evidence = sequence(9, 4)
    assert evidence.embedded is not None
    evidence.embedded[:] = torch.eye(16)[0]
    evidence.embedded[0, 11] = 3 * torch.eye(16)[0]  # one word looks like every patch
    for word in (10, 12, 13):
        evidence.embedded[0, word] = torch.eye(16)[word - 9]
    assert raters(evidence, chunk_masks(evidence)[1]).tolist() == [[-1, 11, -1, -1]]
    for word in (10, 11, 12, 13):  # all alike: all of them rate
        evidence.embedded[0, word] = torch.eye(16)[0]
    assert raters(evidence, chunk_masks(evidence)[1]).tolist() == [[10, 11, 12, 13]]


def test_two_groups_make_two_tokens() -> None:
    draw = np.random.default_rng(0)
    group = np.array([0, 1] * 10)
    hidden = torch.from_numpy(np.eye(8)[group] * 5 + 0.01 * draw.normal(size=(20, 8))).float()
    hidden = torch.cat([hidden, torch.zeros(60, 8)]).unsqueeze(0)  # members are at most a third of the rows
    member = (torch.arange(80) < 20).unsqueeze(0)
    centre, features = merge_peaks(hidden, member, torch.tensor([2]))
    rows = centre[0].nonzero()[:, 0]
    assert sorted(group[rows]) == [0, 1]
    for row in rows:
        mean = hidden[0, :20][torch.from_numpy(group == group[row])].mean(dim=0)
        torch.testing.assert_close(features[0, row], mean)
    torch.testing.assert_close(features[0][~centre[0]], hidden[0][~centre[0]])


def test_huge_channels_do_not_drown_distances() -> None:
    """A channel of a thousand in every row, as trained models have: the same clusters as without."""
    evidence = sequence(60, 6)
    asked = Asked(torch.zeros(1), torch.tensor([20]))
    plain = Method(Config())(evidence, asked)
    evidence.hidden[:, :, 3] += 1500.0
    assert torch.equal(Method(Config())(evidence, asked).order, plain.order)
    wanted = oracle.decoder(
        {"share": 0.521, "recycle": True}, decoder_facts(evidence, 0), Budget(keep_tokens=20)
    )
    assert wanted.kept == tuple(plain.order[0, : plain.count[0]].tolist())


def test_text_only_and_decode_steps_are_left_alone() -> None:
    for kind in ("text only", "decode", "blind question"):
        evidence = decoder_evidence(1, b=2, kind=kind)
        chosen = Method(Config())(evidence, Asked(torch.zeros(2), torch.tensor([1, 0])))
        assert chosen.count.tolist() == evidence.length.tolist()
        assert chosen.features is not None
        torch.testing.assert_close(chosen.features, evidence.hidden)
