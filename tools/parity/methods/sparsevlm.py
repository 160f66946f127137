"""sparsevlm: attention of the words that match the image; the best of the dropped tokens are merged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.counts import final_count
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, Params
from foveate.tools.parity.methods._visual import visual_rows
from foveate.tools.parity.methods.text_relevance import received_attention
from foveate.tools.parity.tolerances import SCORE_NOISE

RATER_NOISE = 1e-6


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay, and the hidden states in which the merged ones are means."""
    visual, rows = visual_rows(facts), range(len(facts.roles))
    asking, fragile = raters(facts)
    scores, seen = received_attention(facts, asking)
    recycle = params.get("recycle", True)
    whole = facts.hidden.astype(np.float64)
    if not any(seen[row] for row in visual):
        return Choice(tuple(rows), fragile, whole if recycle else None)

    size = len(visual)
    top, merged = _counts(params, facts.entered, size, budget)

    def decide(given: Sequence[float]) -> oracles.Choice:
        order = sorted(visual, key=lambda row: (-given[row], row))
        return oracles.Choice(sorted(order[:top]) + sorted(order[top : top + _merged_of(size - top)]), top)

    chosen = decide(scores)
    fragile = fragile or (top < size and oracles.fragile(decide, scores, noise=SCORE_NOISE))
    members = chosen.order[top:] if merged else []
    centres, close = _merge(whole, members, merged)
    fragile = fragile or close
    kept = [row for row in rows if row not in visual or row in chosen.order[:top] or row in centres]
    features = np.array([centres.get(row, whole[row]) for row in kept]) if recycle else None
    return Choice(tuple(kept), fragile, features)


def raters(facts: DecoderFacts) -> tuple[list[int], bool]:
    """Rows of the words above the mean likeness to the image; whether one of them is close to the mean."""
    asking = [row for row in facts.question if 0 <= row < len(facts.roles)]
    visual = visual_rows(facts)
    if not asking or not visual:
        return asking, False
    embedded = facts.embedded.astype(np.float64)
    total = np.zeros(len(asking))
    for row in visual:
        logits = np.array([float(embedded[row] @ embedded[word]) for word in asking])
        powers = np.exp(logits - logits.max())
        total += powers / powers.sum()
    share, line = total / len(visual), 1 / len(asking) + RATER_NOISE
    # A lone word has the whole likeness, which is the mean: exactly, on both sides.
    close = len(asking) > 1 and bool((np.abs(share - line) < 5e-7 + SCORE_NOISE * share).any())
    match = [word for word, each in zip(asking, share, strict=True) if each > line]
    return match or asking, close


def _counts(params: Params, entered: int, size: int, budget: Budget) -> tuple[int, int]:
    """Tokens that stay as they are, and clusters."""
    own = min(max(math.floor(entered * params.get("share", 0.521) + 1e-4), 1), size)
    if not params.get("recycle", True):
        return final_count(own, size, **budget.amount, params={}), 0
    count = final_count(own + _clusters_of(size - own), size, **budget.amount, params={})
    given = budget.keep_tokens > 0 or budget.keep_ratio > 0
    merged = min(_clusters_of(size - count), max(count - 1, 0)) if given else count - own
    return count - merged, merged


def _merged_of(dropped: int) -> int:
    return min(dropped * 3 // 10 + 1, dropped)


def _clusters_of(dropped: int) -> int:
    return _merged_of(dropped) // 10 + 1 if dropped else 0


def _merge(hidden: np.ndarray, members: list[int], count: int) -> tuple[dict[int, np.ndarray], bool]:
    """Centre row -> mean of its cluster; whether noise on the distances would cluster otherwise."""
    if not members or not count:
        return {}, False
    distance = np.array(
        [
            [math.sqrt(((hidden[a] - hidden[b]) ** 2).sum() / hidden.shape[1]) for b in members]
            for a in members
        ]
    )
    owner = peaks(distance, count)
    draw, close = np.random.default_rng(0), False
    for _ in range(16):
        noise = np.triu(draw.uniform(-1, 1, distance.shape), 1) * SCORE_NOISE
        close = close or peaks(distance * (1 + noise + noise.T), count) != owner
    merged = {}
    for centre in set(owner):
        cluster = [hidden[row] for row, its in zip(members, owner, strict=True) if its == centre]
        merged[members[centre]] = np.mean(cluster, axis=0)
    return merged, close


def peaks(distance: np.ndarray, count: int) -> list[int]:
    """The centre of each point by density peaks, from distances [m, m]; `count` centres."""
    size = len(distance)
    spread = [math.fsum(sorted(distance[i] ** 2)[:count]) / count for i in range(size)]  # -log density
    score = []
    for i in range(size):
        denser = [j for j in range(size) if (spread[j], j) < (spread[i], i)]
        gap = min((distance[i, j] for j in denser), default=distance.max())
        score.append(math.log(max(gap, 1e-15)) - spread[i])
    centres = sorted(range(size), key=lambda i: (-score[i], i))[:count]
    nearest = [min(sorted(centres), key=lambda c: distance[i, c]) for i in range(size)]
    return [i if i in centres else nearest[i] for i in range(size)]
