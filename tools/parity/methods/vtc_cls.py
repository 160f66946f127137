"""vtc-cls: true CLS attention, mean over heads, summed over a few layers; a fixed number of the best."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.tools.parity import oracles
from foveate.tools.parity.counts import ceil_share, final_count
from foveate.tools.parity.deciding import decided, pooled
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay."""
    if facts.cls is None:
        raise NoOracleError("vtc-cls says nothing about an encoder without CLS")
    layers = _ensemble(params, facts)
    tiles = [
        oracles.encoder_scores(
            "cls_mean",
            query={layer: facts.query[layer][t] for layer in layers},
            key={layer: facts.key[layer][t] for layer in layers},
            num_heads=facts.num_heads,
        )
        for t in range(len(facts.patches))
    ]
    scores, together = pooled(tiles, facts.pool)
    return decided(lambda s: _order(s, params, facts, budget), scores, together)


def _order(scores: Sequence[float], params: Params, facts: EncoderFacts, budget: Budget) -> oracles.Choice:
    size = len(scores)
    rule = ceil_share(params.get("ratio", 0.2222), size)
    count = final_count(rule, size, budget.keep_ratio, budget.keep_tokens, {})
    ranking = sorted(range(size), key=lambda i: (-scores[i], i))
    if params.get("spread", "image") == "tile":
        ranking = oracles.spread_ranking(scores, [int(name) for name in facts.tile])
    kept = sorted(ranking[:count])
    return oracles.Choice(kept + [i for i in range(size) if i not in kept], count)


def _ensemble(params: Params, facts: EncoderFacts) -> list[int]:
    """The layers named, or the `depth` layers of which the last writes the features."""
    if params.get("layers") is not None:
        return [int(layer) for layer in params["layers"]]
    last = max(facts.feature_layer - 1, 0)
    return [layer for layer in range(last - int(params.get("depth", 3)) + 1, last + 1) if layer >= 0]
