"""dart: pivots by the L1 norm of their keys; each takes the free visual tokens that are least like it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.counts import final_count
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params
from foveate.tools.parity.methods._near import NEAR, cosine
from foveate.tools.parity.methods._visual import visual_rows


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay."""
    visual, rows = visual_rows(facts), len(facts.roles)
    texts = sorted({row for row in facts.question if facts.roles[row] != oracles.VISUAL})
    image_pivots, text_pivots = int(params.get("image_pivots", 4)), int(params.get("text_pivots", 4))
    each = math.floor(len(visual) * params.get("ratio", 0.222) / (image_pivots + text_pivots) + 1e-4)
    rule = image_pivots + (image_pivots + text_pivots) * each
    count = final_count(rule, len(visual), **budget.amount, params={})

    norms = [float(np.abs(facts.key[:, row].astype(np.float64)).sum()) for row in range(rows)]
    hidden = facts.hidden.astype(np.float64)
    chosen, fragile = _largest(norms, visual, min(image_pivots, count))
    asking, doubt = _largest(norms, texts, text_pivots)
    pivots, fragile = [*chosen, *asking], fragile or doubt
    missing = count - len(chosen)
    for number, pivot in enumerate(pivots):
        quota = missing // len(pivots) + (number < missing % len(pivots))
        likeness = {row: cosine(hidden[row], hidden[pivot]) for row in visual if row not in chosen}
        least = sorted(likeness, key=lambda row: (likeness[row], row))
        if 0 < quota < len(least):
            fragile = fragile or likeness[least[quota]] - likeness[least[quota - 1]] <= NEAR
        chosen = [*chosen, *least[:quota]]
    kept = [row for row in range(rows) if row not in visual or row in chosen]
    return Choice(tuple(kept), fragile and count < len(visual))


def _largest(norms: list[float], pool: list[int], count: int) -> tuple[list[int], bool]:
    """The `count` rows of `pool` with the largest norms, largest first; whether noise could reorder them."""
    order = sorted(pool, key=lambda row: (-norms[row], row))
    steps = [(norms[a] - norms[b]) / max(norms[a], 1e-12) for a, b in pairwise(order)]
    return order[:count], any(step <= NEAR for step in steps[:count])
