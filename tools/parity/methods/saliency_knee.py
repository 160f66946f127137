"""saliency-knee: attention received, the pooling head's, or likeness to the prompt; the head of the curve."""

from __future__ import annotations

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.deciding import made_of
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay."""
    kind = params.get("score", "received")
    if kind == "prompt":
        if facts.projected is None or facts.prompt is None:
            raise NoOracleError("score=prompt needs the projected candidates and the words of the prompt")
        scores = oracles.prompt_scores(facts.projected, facts.prompt)
        return made_of(scores, facts.ends or np.asarray, params, facts, budget)
    if kind == "pooled":
        if facts.pooled is None:
            raise NoOracleError("score=pooled needs a pooling head")
        return made_of(facts.pooled, facts.pool, params, facts, budget)
    layer = _looking_layer(params, facts)
    tiles = [
        oracles.received_scores(query, key, facts.num_heads, skip=int(facts.has_cls))
        for query, key in zip(facts.query[layer], facts.key[layer], strict=True)
    ]
    return made_of(tiles, facts.pool, params, facts, budget)


def _looking_layer(params: Params, facts: EncoderFacts) -> int:
    """The last layer under the features in which a patch sees its whole tile; else the first such layer."""
    if params.get("layer") is not None:
        return int(params["layer"])
    under = [layer for layer in facts.global_layers if layer < facts.feature_layer]
    return max(under) if under else min(facts.global_layers)
