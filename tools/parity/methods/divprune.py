"""divprune: the most isolated token first, then always the one farthest from its nearest chosen one."""

from __future__ import annotations

import numpy as np

from foveate.tools.parity.counts import final_count, scale_count
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params

NEAR = 1e-5
"""Distances that lie closer than this may come out the other way round in float32."""


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay."""
    if facts.projected is None:
        raise NoOracleError("divprune needs the projected candidates")
    distance = distances(facts.projected)
    size = len(distance)
    rule = scale_count(size, params.get("ratio", 0.098))
    count = final_count(rule, size, budget.keep_ratio, budget.keep_tokens, {})

    alone = [min((distance[i, j] for j in range(size) if j != i), default=0.0) for i in range(size)]
    first = max(range(size), key=lambda i: (alone[i], -i))
    # The two of a mutual pair have one distance: they tie exactly, on both sides.
    rivals = [i for i in range(size) if i != first and alone[i] != distance[i, first]]
    fragile = any(alone[first] - alone[i] < NEAR for i in rivals)
    chosen = [first]
    while len(chosen) < count:
        left = [i for i in range(size) if i not in chosen]
        reach = {i: min(distance[i, j] for j in chosen) for i in left}
        best = max(left, key=lambda i: (reach[i], -i))
        fragile = fragile or any(reach[best] - reach[i] < NEAR for i in left if i != best)
        chosen.append(best)
    # Keeping all of them leaves nothing to decide.
    return Choice(tuple(sorted(chosen)), fragile and count < size)


def distances(rows: np.ndarray) -> np.ndarray:
    """1 - cosine of any two rows [n, d], as [n, n]; a zero row is at distance 1 from everything."""
    double = np.asarray(rows, dtype=np.float64)
    made = np.ones((len(double), len(double)))
    for i, a in enumerate(double):
        for j in range(i + 1):
            norm = np.sqrt((a * a).sum()) * np.sqrt((double[j] * double[j]).sum())
            made[i, j] = made[j, i] = 1 - (a * double[j]).sum() / max(norm, 1e-12)
    return made
