"""The reference is judged, too: against plain transformers, and against masks instead of gathering."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from table import DEFAULT, ROWS, Row
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from foveate.tools.parity import oracles
from foveate.tools.parity import reference as pruned_reference
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params
from foveate.tools.parity.families.base import split_heads, tapped
from foveate.tools.parity.families.llava import Oracle
from foveate.tools.parity.methods.text_relevance import received_attention
from foveate.tools.parity.prompts import CASES, Front, Turn
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.reference_parts import Cut, Generated, TurnTrace

PLAN = (
    Cut("encoder", None, "cls-knee", {"min_keep": 3}),
    Cut("decoder", 1, "text-relevance", {"ratio": 0.6}),
    Cut("decoder", 3, "text-relevance", {"ratio": 0.5, "profile": "safe"}),
)
LLAVA = [row for row in ROWS if row.family == "llava"]
QWEN = next(row for row in LLAVA if row.checkpoint.get("text") == "qwen2")
MISTRAL = next(row for row in LLAVA if row.checkpoint.get("text") == "mistral")
TWO_IMAGES = next(case for case in CASES if case.name == "two images")


@pytest.fixture
def turn(front: Front) -> Turn:
    return front.prompt(TWO_IMAGES).turn


def forward(reference: Reference, turn: Turn) -> torch.Tensor:
    """Logits [s, v] of transformers' own forward."""
    assert turn.source is not None
    with torch.no_grad():
        out = reference.oracle.model(input_ids=torch.tensor([turn.input_ids]), **turn.source.inputs)
    logits: torch.Tensor = out.logits[0]
    return logits


@pytest.mark.parametrize("row", [DEFAULT, MISTRAL, QWEN], ids=["llama", "mistral", "qwen2"])
def test_without_cuts_it_is_transformers(row: Row, checkpoint_of: Callable[[Row], Path]) -> None:
    oracle = Oracle(checkpoint_of(row))
    reference, turn = Reference(oracle), Front(oracle).prompt(CASES[1]).turn
    trace = reference.prefill([turn])
    assert torch.allclose(trace.logits, forward(reference, turn), atol=1e-5)
    assert reference.generate([turn], 8).tokens == reference.generate_unpruned(turn, 8)


def test_two_turns_without_cuts_are_one_prompt(reference: Reference, turn: Turn) -> None:
    """Positions and attention go on from turn to turn."""
    half = len(turn.input_ids) - 20
    parts = {
        name: (getattr(turn, name)[:half], getattr(turn, name)[half:])
        for name in ("input_ids", "roles", "item", "positions")
    }
    first = replace(turn, query=(), **{name: part[0] for name, part in parts.items()})
    second = replace(turn, query=(), **{name: part[1] for name, part in parts.items()})
    second = replace(second, source=None, positions=second.positions - half)
    trace = reference.prefill([first, second])
    assert torch.allclose(trace.logits, forward(reference, turn)[half:], atol=1e-5)
    assert trace.next_position == len(turn.input_ids)


def masked(reference: Reference, trace: TurnTrace, tokens: list[int]) -> torch.Tensor:
    """Logits of the last row when dropped rows stay, and a mask hides them from their cut on."""
    ids = torch.tensor(tokens, dtype=torch.long)
    text = reference.oracle.text
    embedded = torch.cat([trace.embedded, text.embed_tokens(ids)])
    start = trace.next_position
    positions = torch.cat([trace.positions[:, 0], torch.arange(start, start + len(tokens))])
    count, prompt = len(positions), len(trace.positions)
    bounds = [0, *(cut.layer or 0 for cut in PLAN[1:]), reference.num_layers]
    hidden = embedded[None]
    rotary = text.rotary_emb(hidden, positions[None])
    for segment, (first, stop) in enumerate(itertools.pairwise(bounds)):
        alive = {trace.rows[0].index(row) for row in trace.rows[segment]}
        hide = torch.tensor([row < prompt and row not in alive for row in range(count)])
        mask = torch.full((count, count), torch.finfo(torch.float32).min).triu(1)
        mask = mask.masked_fill(hide[None], torch.finfo(torch.float32).min).fill_diagonal_(0.0)
        for layer in text.layers[first:stop]:
            hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rotary)
    logits: torch.Tensor = reference.oracle.model.lm_head(text.norm(hidden[0, -1]))
    return logits


@torch.no_grad()
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_gathering_equals_masking(reference: Reference, turn: Turn, positions: str) -> None:
    """Taking rows out and hiding them are the same function, for the prompt and for generated tokens."""
    made = reference.generate([turn], 6, PLAN, {}, positions)
    sizes = [len(rows) for rows in made.trace.rows]
    assert sizes[0] > sizes[1] > sizes[2]
    assert torch.allclose(masked(reference, made.trace, []), made.trace.logits[-1], atol=2e-5)
    for step, token in enumerate(made.tokens):
        assert int(masked(reference, made.trace, list(made.tokens[:step])).argmax()) == token


@torch.no_grad()
def test_evidence_of_a_later_turn_is_its_own_softmax(reference: Reference, turn: Turn) -> None:
    """With earlier turns before it, attention is normalised over the new chunk: as the oracle has it."""
    plan = PLAN[1:2]
    before = Turn.plain(range(5, 25))
    trace = reference.prefill([before, turn], plan)
    facts = trace.facts["decoder@1"]
    text, places = reference.oracle.text, trace.positions[None, :, 0]
    attention = text.layers[0].self_attn
    with tapped({"q": attention.q_proj, "k": attention.k_proj}) as taps:
        text(inputs_embeds=trace.embedded[None], position_ids=places, use_cache=False)
    cos, sin = text.rotary_emb(trace.embedded[None], places)
    query, key = apply_rotary_pos_emb(
        *(split_heads(taps[name][0][0], attention.head_dim)[None] for name in ("q", "k")), cos, sin
    )
    wanted, rows = oracles.decoder_scores(
        query[0].numpy(), key[0].numpy(), facts.roles, facts.question, len(facts.roles), facts.scale
    )
    got, got_rows = received_attention(facts, facts.question)
    assert got_rows == rows
    assert np.allclose(got, wanted, rtol=1e-3, atol=1e-9)
    assert np.argsort(got).tolist() == np.argsort(wanted).tolist()


def test_budgets_are_obeyed_at_each_site(reference: Reference, turn: Turn) -> None:
    budgets = {
        "encoder": Budget(keep_tokens=9),
        "decoder@1": Budget(keep_ratio=0.5),
        "decoder@3": Budget(keep_tokens=4),
    }
    trace = reference.prefill([turn], PLAN, budgets)
    assert [len(item.kept) for item in trace.items] == [9, 9]
    visual = [sum(turn.roles[row] == 1 for row in rows) for rows in trace.rows]
    assert visual == [18, 9, 4]


def test_original_positions_leave_the_gaps(reference: Reference, turn: Turn) -> None:
    compact, original = (reference.prefill([turn], PLAN[:1], {}, mode) for mode in ("compact", "original"))
    assert compact.rows == original.rows
    assert compact.positions[:, 0].tolist() == list(range(len(compact.rows[0])))
    assert compact.next_position == len(compact.rows[0])
    assert original.positions[:, 0].tolist() == list(original.rows[0])
    assert original.next_position == len(turn.input_ids)


def test_a_window_that_is_too_small_is_refused(checkpoint_of: Callable[[Row], Path], turn: Turn) -> None:
    reference = Reference(Oracle(checkpoint_of(MISTRAL)))
    for layer in reference.oracle.text.layers:
        layer.self_attn.sliding_window = 8
    with pytest.raises(ValueError, match="sliding window"):
        reference.prefill([turn])


def test_rewritten_rows_stand_in_for_the_kept_ones(
    reference: Reference, turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written as they are, nothing changes; doubled, what follows is read from the doubled ones."""
    plan, plain = PLAN[1:2], reference.generate([turn], 4, PLAN[1:2])
    choose = pruned_reference.choose_decoder

    def rewrite(factor: float) -> Generated:
        def chosen(method: str, params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
            choice = choose(method, params, facts, budget)
            return replace(choice, features=facts.hidden[list(choice.kept)] * factor)

        monkeypatch.setattr(pruned_reference, "choose_decoder", chosen)
        return reference.generate([turn], 4, plan)

    assert rewrite(1.0).tokens == plain.tokens
    assert torch.equal(rewrite(1.0).trace.logits, plain.trace.logits)
    assert not torch.allclose(rewrite(2.0).trace.logits, plain.trace.logits)


def test_extra_tokens_see_each_other_in_any_order(reference: Reference, turn: Turn) -> None:
    facts = reference.items(turn)[0].facts
    assert facts.extra is not None
    tokens = np.random.default_rng(0).normal(size=(3, facts.patches.shape[2])).astype(np.float32)
    rows = facts.extra(tokens)
    assert np.allclose(facts.extra(tokens[::-1]), rows[::-1], atol=1e-5)
    assert not np.allclose(facts.extra(tokens[:2]), rows[:2], atol=1e-3)
