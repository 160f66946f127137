"""text-relevance: attention received from the question, visual and text tokens ranked apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.deciding import decided
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay."""
    length, which = len(facts.roles), params.get("query", "text")
    if params.get("rope_free", False):
        scores, rows = oracles.decoder_scores(
            facts.query_plain, facts.key_plain, facts.roles, facts.question, length, facts.scale, which
        )
    else:
        scores, rows = received_attention(facts, oracles.question_rows(facts.question, length, which))
    return decided(
        lambda s: oracles.decoder_choice(s, rows, facts.roles, length, params, **budget.amount), scores
    )


def received_attention(facts: DecoderFacts, question: Sequence[int]) -> tuple[list[float], list[int]]:
    """Mean real attention that each row receives from the question rows after it, and their number."""
    mean = facts.attention.astype(np.float64).mean(axis=0)  # h s s -> s s
    total, rows = [0.0] * len(facts.roles), [0] * len(facts.roles)
    for asking in question:
        for j in range(asking + 1):
            if j == asking and facts.roles[j] == oracles.TEXT:
                continue  # attention to oneself says nothing
            total[j] += float(mean[asking, j])
            rows[j] += 1
    return [value / max(count, 1) for value, count in zip(total, rows, strict=True)], rows
