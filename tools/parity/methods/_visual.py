"""What oracles of the decoder site share: which rows stay when so many visual tokens may."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.tools.parity import oracles
from foveate.tools.parity.deciding import decided
from foveate.tools.parity.facts import Choice, DecoderFacts


def visual_rows(facts: DecoderFacts) -> list[int]:
    """Rows of visual tokens."""
    return [row for row, role in enumerate(facts.roles) if role == oracles.VISUAL]


def best_visual(scores: Sequence[float], count: int, facts: DecoderFacts) -> Choice:
    """Everything else, and the `count` visual rows with the largest score; equal ones by rising row."""

    def decide(given: Sequence[float]) -> oracles.Choice:
        ranking = sorted(visual_rows(facts), key=lambda row: (-given[row], row))
        dropped = ranking[count:]
        kept = [row for row in range(len(facts.roles)) if row not in dropped]
        return oracles.Choice(kept + sorted(dropped), len(kept))

    return decided(decide, scores)


def by_attention(facts: DecoderFacts, which: str, count: int) -> Choice:
    """`best_visual` by attention received from the rows of `which`; everything where none of them looks."""
    from foveate.tools.parity.methods.text_relevance import received_attention

    asking = oracles.question_rows(facts.question, len(facts.roles), which)
    scores, rows = received_attention(facts, asking)
    if not any(rows[row] for row in visual_rows(facts)):
        return Choice(tuple(range(len(facts.roles))))
    return best_visual(scores, count, facts)
