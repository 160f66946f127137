"""dart: equal to its oracle, the paper's numbers, duplicates, who is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from twins import DECODER_KINDS, compare_decoder, decoder_evidence

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.evidence import DecoderEvidence
from foveate.pruning.methods.dart import Config, Method
from foveate.pruning.plan import parse_plan
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=2), Budget(keep_ratio=0.6), Budget(keep_tokens=99)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"ratio": 0.7},
    {"image_pivots": 1, "text_pivots": 0, "ratio": 0.5},
    {"image_pivots": 2, "text_pivots": 9, "ratio": 0.8},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in DECODER_KINDS:
        for seed in range(8):
            evidence = decoder_evidence(seed, b=4, kind=kind, patches=30 if seed % 2 else 12)
            compared += compare_decoder("dart", options, evidence, BUDGETS)
    assert compared > 230


def test_ties_keep_the_lower_index() -> None:
    for patches in (2, 30):
        evidence = decoder_evidence(3, b=4, kind="equal", patches=patches)
        evidence = evidence._replace(hidden=torch.full((*evidence.hidden.shape[:2], 16), 0.5))
        assert compare_decoder("dart", {}, evidence, BUDGETS, even_ties=True) == 4


def sequence(patches: int, text: int, seed: int = 0) -> DecoderEvidence:
    """One sequence: two fixed rows, the picture, `text` rows that ask."""
    draw = np.random.default_rng(seed)
    s = 2 + patches + text
    plain = torch.from_numpy(draw.normal(size=(4, 1, 2, s, 6))).float()
    roles = torch.tensor([[0, 0, *[1] * patches, *[2] * text]])
    index = torch.arange(2 + patches, s).unsqueeze(0)
    hidden = torch.from_numpy(draw.normal(size=(1, s, 16))).float()
    return DecoderEvidence(*plain, hidden, roles, index, torch.tensor([s]), 0.4)


def visual_kept(evidence: DecoderEvidence, tokens: int = 0, **options: Any) -> list[int]:
    chosen = Method(Config(**options))(evidence, Asked(torch.zeros(1), torch.tensor([tokens])))
    kept = chosen.order[0, : chosen.count[0]].tolist()
    return [row for row in kept if evidence.token_role[0, row] == 1]


def test_the_papers_setting() -> None:
    """K = 2, four image pivots and eight times fifteen others of 576."""
    (cut,) = parse_plan(["dart"], 32).cuts
    assert (cut.name, cut.params["image_pivots"], cut.params["text_pivots"]) == ("decoder@2", 4, 4)
    assert len(visual_kept(sequence(576, 40))) == 124


def test_every_budget_is_obeyed() -> None:
    for patches, text in ((1, 3), (3, 0), (20, 1), (40, 9)):
        for tokens in range(1, patches + 3):
            kept = visual_kept(sequence(patches, text, tokens), tokens)
            assert len(kept) == min(tokens, patches)


def test_pivots_have_the_longest_keys() -> None:
    evidence = sequence(30, 5)
    norm = evidence.key.abs().sum(dim=(1, 3))[0, 2:32]
    best = (norm.topk(4).indices + 2).tolist()
    assert visual_kept(evidence, 4) == sorted(best)
    assert set(best) < set(visual_kept(evidence, 12))


def test_a_duplicate_of_a_pivot_goes_first() -> None:
    """Tokens that copy the one pivot are the last to stay."""
    evidence = sequence(20, 3)
    pivot = visual_kept(evidence, 1, image_pivots=1, text_pivots=0)[0]
    copies = [row for row in range(2, 22) if row != pivot][::3]
    for row in copies:
        evidence.hidden[0, row] = evidence.hidden[0, pivot] * 1.5
    kept = visual_kept(evidence, 20 - len(copies), image_pivots=1, text_pivots=0)
    assert not set(kept) & set(copies)


def test_padding_is_never_read() -> None:
    short, b = sequence(12, 4, 5), 2
    longer = sequence(30, 4, 6)
    names = ("query", "key", "query_plain", "key_plain", "hidden", "token_role", "query_index")
    wide = {name: torch.cat([getattr(longer, name)] * b) for name in names}
    both = DecoderEvidence(**wide, length=torch.tensor([18, 36]), scale=0.4)
    both.key[0, :, :18], both.hidden[0, :18] = short.key[0], short.hidden[0]
    both.key[0, :, 18:], both.hidden[0, 18:] = 1e4, 1e4
    both.token_role[0, :18], both.token_role[0, 18:] = short.token_role[0], 1
    both.query_index[0] = short.query_index[0]
    asked = Asked(torch.zeros(b), torch.tensor([7, 3]))
    chosen = Method(Config())(both, asked)
    alone = Method(Config())(short, Asked(torch.zeros(1), torch.tensor([7])))
    assert chosen.order[0, : chosen.count[0]].tolist() == alone.order[0, : alone.count[0]].tolist()
