"""exit: no visual token stays; a budget keeps that many, evenly spread."""

from __future__ import annotations

from foveate.tools.parity.counts import final_count
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params
from foveate.tools.parity.methods._visual import visual_rows


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay; no score decides, so nothing is fragile."""
    visual = visual_rows(facts)
    count = 0
    if budget.keep_ratio > 0 or budget.keep_tokens > 0:
        count = final_count(0, len(visual), **budget.amount, params={})
    # One of each of `count` stretches of equal length: the last that begins in it.
    stays = [visual[-(-(i + 1) * len(visual) // count) - 1] for i in range(count)]
    return Choice(tuple(row for row in range(len(facts.roles)) if row not in visual or row in stays))
