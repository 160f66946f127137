"""aim-rank: importance by a walk along the sharpened attention; a share of those that entered."""

from __future__ import annotations

import math

import numpy as np

from foveate.tools.parity.counts import final_count
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params
from foveate.tools.parity.methods._visual import visual_rows
from foveate.tools.parity.tolerances import SCORE_NOISE

# The walk starts at every row of the chunk.
WHOLE_CHUNK = True


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay."""
    size = len(visual_rows(facts))
    count = min(math.floor(facts.entered * params.get("share", 0.5) + 1e-4), size)
    if budget.keep_ratio > 0 or budget.keep_tokens > 0:
        count = final_count(count, size, **budget.amount, params={})
    scores = importance(params, facts)
    # Noise of a logit is multiplied by 1 / temperature in the exponent, and again by every step.
    factor = params.get("iterations", 5) / params.get("temperature", 0.1)
    ranking = sorted(visual_rows(facts), key=lambda row: (-scores[row], row))
    dropped = set(ranking[count:])
    kept = tuple(row for row in range(len(facts.roles)) if row not in dropped)
    return Choice(kept, 0 < count < size and _close(scores, ranking, count, SCORE_NOISE * factor))


def importance(params: Params, facts: DecoderFacts) -> list[float]:
    """Root mean square over heads of where an even start ends up, for each row of the sequence."""
    damping, temperature = params.get("damping", 0.0), params.get("temperature", 0.1)
    queries, keys = np.asarray(facts.query, np.float64), np.asarray(facts.key, np.float64)
    h, s = queries.shape[:2]
    squares = [0.0] * s
    for head in range(h):
        group = keys[head // (h // len(keys))]
        moves = np.zeros((s, s))
        for i in range(s):
            logits = [float(queries[head, i] @ group[j]) * facts.scale / temperature for j in range(i + 1)]
            powers = [math.exp(each - max(logits)) for each in logits]
            moves[i, : i + 1] = [each / math.fsum(powers) for each in powers]
        walk = np.full(s, 1 / s)
        for _ in range(params.get("iterations", 5)):
            walk = (1 - damping) * (walk @ moves) + damping / s
        for j in range(s):
            squares[j] += float(walk[j]) ** 2 / h
    return [math.sqrt(each) for each in squares]


def _close(scores: list[float], ranking: list[int], count: int, noise: float) -> bool:
    """Whether the last that stays and the first that goes are apart by less than noise, or underflow."""
    stays, goes = scores[ranking[count - 1]], scores[ranking[count]]
    return stays - goes <= 2 * noise * stays or stays < 1e-30
