"""visionzip: dominant tokens by attention; what is left joins evenly placed targets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.counts import ceil_share, final_count
from foveate.tools.parity.deciding import decided, pooled
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params
from foveate.tools.parity.methods._near import best, cosine


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay, and their merged rows."""
    layer = _layer(params, facts)
    scores, together = pooled(_tiles(params, facts, layer), facts.pool)

    def decide(given: Sequence[float]) -> oracles.Choice:
        dominant, targets = _split(given, params, budget)
        kept = sorted([*dominant, *targets])
        return oracles.Choice(kept + [i for i in range(len(given)) if i not in kept], len(kept))

    choice = decided(decide, scores, together)
    if float(params.get("context", 0.15625)) == 0:
        return choice
    dominant, targets = _split(scores, params, budget)
    key = np.asarray(facts.key[layer][0][int(facts.has_cls) :], dtype=np.float64)
    heads = key.reshape(len(key), facts.num_heads, -1).mean(axis=1)
    rows = np.asarray(facts.features, dtype=np.float64)
    members: dict[int, list[int]] = {target: [] for target in targets}
    close = False
    for i in range(len(rows)):
        if i not in dominant and targets and i not in targets:
            nearest, tie = best([cosine(heads[i], heads[target]) for target in targets])
            members[targets[nearest]].append(i)
            close = close or tie
    merged = {i: rows[i] for i in dominant}
    for target, joined in members.items():
        merged[target] = rows[target] + (sum(rows[i] for i in joined) / len(joined) if joined else 0)
    features = np.stack([merged[i] for i in sorted(merged)])
    return Choice(choice.kept, choice.fragile or close, features)


def _split(scores: Sequence[float], params: Params, budget: Budget) -> tuple[list[int], list[int]]:
    """Dominant tokens and targets, both ascending."""
    n = len(scores)
    count = final_count(
        ceil_share(params.get("ratio", 0.2222), n), n, budget.keep_ratio, budget.keep_tokens, {}
    )
    contextual = math.floor(count * float(params.get("context", 0.15625)) + 1e-4)
    ranking = sorted(range(n), key=lambda i: (-scores[i], i))
    dominant = sorted(ranking[: count - contextual])
    if contextual == 0:
        return dominant, []
    rest = [i for i in range(n) if i not in dominant]
    step = max(1, len(rest) // contextual)
    return dominant, rest[::step][:contextual]


def _tiles(params: Params, facts: EncoderFacts, layer: int) -> list[list[float]]:
    """Patch scores of each tile."""
    pairs = list(zip(facts.query[layer], facts.key[layer], strict=True))
    if params.get("score", "cls") == "received":
        return [oracles.received_scores(q, k, facts.num_heads, skip=int(facts.has_cls)) for q, k in pairs]
    if facts.cls is None:
        raise NoOracleError("visionzip's score=cls says nothing about an encoder without CLS")
    return [
        oracles.encoder_scores("cls_mean", query={0: q}, key={0: k}, num_heads=facts.num_heads)
        for q, k in pairs
    ]


def _layer(params: Params, facts: EncoderFacts) -> int:
    if params.get("layer") is not None:
        return int(params["layer"])
    writer = max(facts.feature_layer - 1, 0)
    if params.get("score", "cls") == "cls" or writer in facts.global_layers:
        return writer
    before = [layer for layer in facts.global_layers if layer <= writer]
    return max(before) if before else max(facts.global_layers)
