"""aim-merge: the evens' best pairs with the odds, merged round by round."""

from __future__ import annotations

import numpy as np

from foveate.tools.parity.counts import ceil_share, final_count
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, Params
from foveate.tools.parity.methods._near import best, cosine, head


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item whose places stay, and their merged rows."""
    n = len(facts.tile)
    rule = ceil_share(params.get("ratio", 0.4375), n)
    count = final_count(rule, n, budget.keep_ratio, budget.keep_tokens, {})
    rows = [np.asarray(row, dtype=np.float64) for row in facts.features]
    keys = rows
    if params.get("metric", "key") == "key":
        layer = params.get("layer")
        layer = min(facts.feature_layer, facts.num_layers - 1) if layer is None else int(layer)
        keys = [np.asarray(row, dtype=np.float64) for row in facts.key[layer][0][int(facts.has_cls) :]]
    left, fragile = list(range(n)), False
    while len(left) > count:
        groups, close = _pairs(left, keys, min(len(left) - count, len(left) // 2))
        fragile = fragile or close
        gone = {member for members in groups.values() for member in members}
        for target, members in groups.items():
            merged = [target, *members]
            row, key = (np.stack([of[i] for i in merged]).mean(axis=0) for of in (rows, keys))
            rows[target], keys[target] = row, key
        left = [i for i in left if i not in gone]
    return Choice(tuple(left), fragile, np.stack([rows[i] for i in left]))


def _pairs(left: list[int], keys: list[np.ndarray], excess: int) -> tuple[dict[int, list[int]], bool]:
    """Who joins whom in one round, and whether one of these decisions was close."""
    sources, targets = left[0::2], left[1::2]
    likeness = [[cosine(keys[source], keys[target]) for target in targets] for source in sources]
    chosen, fragile = head([max(row) for row in likeness], excess)
    groups: dict[int, list[int]] = {}
    for place in sorted(chosen):
        nearest, close = best(likeness[place])
        fragile = fragile or close
        groups.setdefault(targets[nearest], []).append(sources[place])
    return groups, fragile
