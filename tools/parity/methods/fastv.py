"""fastv: the visual tokens that the last prompt token (or the text, or everyone) attends to most."""

from __future__ import annotations

from foveate.tools.parity.counts import ceil_share, final_count
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params
from foveate.tools.parity.methods._visual import by_attention, visual_rows


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay."""
    size = len(visual_rows(facts))
    count = final_count(ceil_share(params.get("ratio", 0.5), size), size, **budget.amount, params={})
    return by_attention(facts, params.get("query", "last"), count)
