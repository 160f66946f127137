"""random: the candidates with the largest hash. Whole numbers, so never fragile."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.tools.parity import oracles
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, EncoderFacts, Params


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay."""
    count = len(facts.tile)
    return _hashed(range(count), range(0), count, params, budget)


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay."""
    visual = [row for row, role in enumerate(facts.roles) if role == oracles.VISUAL]
    others = [row for row, role in enumerate(facts.roles) if role != oracles.VISUAL]
    return _hashed(visual, others, len(facts.roles), params, budget)


def _hashed(
    candidates: Sequence[int], others: Sequence[int], size: int, params: Params, budget: Budget
) -> Choice:
    chosen = oracles.random_order(candidates, others, size, params, seed=budget.seed, **budget.amount)
    return Choice(tuple(chosen.order[: chosen.count]))
