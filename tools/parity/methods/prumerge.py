"""prumerge: outliers of the CLS curve, neighbours added to each, one extra token for everything dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.counts import ceil_share, knee_iqr
from foveate.tools.parity.deciding import decided, pooled
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params
from foveate.tools.parity.methods._near import cosine_table, head


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay, and their merged rows."""
    if facts.cls is None:
        raise NoOracleError("prumerge says nothing about an encoder without CLS")
    layer = params.get("layer")
    layer = min(facts.feature_layer, facts.num_layers - 1) if layer is None else int(layer)
    key = facts.key[layer]
    tiles = [
        oracles.encoder_scores("cls_full", query={layer: facts.query[layer][t]}, key={layer: key[t]})
        for t in range(len(key))
    ]
    scores, together = pooled(tiles, facts.pool)

    def decide(given: Sequence[float]) -> oracles.Choice:
        centres, extra = _centres(given, params, budget)
        kept = sorted([*centres, *extra])
        return oracles.Choice(kept + [i for i in range(len(given)) if i not in kept], len(kept))

    choice = decided(decide, scores, together)
    if (budget.keep_tokens > 0 or budget.keep_ratio > 0) and len(choice.kept) == len(scores):
        return Choice(choice.kept, choice.fragile, np.asarray(facts.features, dtype=np.float64))
    centres, extra = _centres(scores, params, budget)
    features, close = _merge(scores, centres, extra, key[0][1:], facts.features, params)
    return Choice(choice.kept, choice.fragile or close, features)


def _centres(scores: Sequence[float], params: Params, budget: Budget) -> tuple[list[int], list[int]]:
    """Kept patches, and the place of the extra token (empty without one)."""
    n, plus = len(scores), bool(params.get("plus", False))
    ranking = sorted(range(n), key=lambda i: (-scores[i], i))
    if budget.keep_tokens > 0 or budget.keep_ratio > 0:
        total = budget.keep_tokens or max(ceil_share(budget.keep_ratio, n), 1)
        total = min(total, n)
        number = total - 1 if 1 < total < n else total
        centres = _shared(ranking, number) if plus else ranking[:number]
        wanted = total - number
    else:
        outliers = knee_iqr([scores[i] for i in ranking], params) or 1
        centres = list(ranking[:outliers])
        if plus:
            gap = max(1, int(int(n / outliers) / 3))
            centres += [i for i in range(0, n - 1, gap) if i not in centres]
        wanted = 1
    dropped = [i for i in range(n) if i not in centres]
    return sorted(centres), dropped[-1:] if wanted else []


def _shared(ranking: Sequence[int], number: int) -> list[int]:
    """A quarter (rounded up) of the best, the others at even distances among what is left."""
    best = -(-number // 4)
    left = sorted(ranking[best:])
    chosen, taken = list(ranking[:best]), 0
    for place, patch in enumerate(left):
        if (place + 1) * (number - best) // len(left) > taken:
            chosen.append(patch)
            taken += 1
    return chosen


def _merge(
    scores: Sequence[float],
    centres: Sequence[int],
    extra: Sequence[int],
    key: np.ndarray,
    features: np.ndarray,
    params: Params,
) -> tuple[np.ndarray, bool]:
    """Rows of the kept, ascending, and whether a neighbour was chosen by a hair."""
    rows, likeness = np.asarray(features, dtype=np.float64), cosine_table(key)
    merged, fragile = {}, False
    for i in centres:
        others = [j for j in range(len(rows)) if j != i]
        chosen, close = head([likeness[i][j] for j in others], int(params.get("neighbours", 32)))
        fragile = fragile or close
        merged[i] = rows[i].copy()
        for place in chosen:
            merged[i] += scores[others[place]] * rows[others[place]]
    for slot in extra:
        merged[slot] = np.zeros_like(rows[0])
        for j in range(len(rows)):
            if j not in centres:
                merged[slot] += scores[j] * rows[j]
    return np.stack([merged[i] for i in sorted(merged)]), fragile
