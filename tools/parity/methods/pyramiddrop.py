"""pyramiddrop: a share, rounded down, of the visual tokens that entered; the last instruction token ranks."""

from __future__ import annotations

import math

from foveate.tools.parity.counts import final_count
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params
from foveate.tools.parity.methods._visual import by_attention, visual_rows


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay."""
    rule = math.floor(facts.entered * params.get("share", 0.5) + 1e-4)
    count = final_count(rule, len(visual_rows(facts)), **budget.amount, params={})
    return by_attention(facts, params.get("query", "last"), count)
