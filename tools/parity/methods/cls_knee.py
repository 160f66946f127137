"""cls-knee: similarity to CLS, the head of the sorted curve."""

from __future__ import annotations

from foveate.tools.parity import oracles
from foveate.tools.parity.deciding import made_of
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay."""
    kind = params.get("score", "cls_full")
    if facts.cls is None:
        raise NoOracleError("cls-knee says nothing about an encoder without CLS")
    layers = _scored_layers(kind, params, facts)
    tiles = [
        oracles.encoder_scores(
            kind,
            features=facts.patches[t],
            cls=facts.cls[t],
            query={layer: facts.query[layer][t] for layer in layers},
            key={layer: facts.key[layer][t] for layer in layers},
            num_heads=facts.num_heads,
        )
        for t in range(len(facts.patches))
    ]
    return made_of(tiles, facts.pool, params, facts, budget)


def _scored_layers(kind: str, params: Params, facts: EncoderFacts) -> list[int]:
    """cls_full looks at the layer that reads the features, cls_mean at the three that lead up to them."""
    if kind == "cls_full":
        given = params.get("layer")
        return [min(facts.feature_layer, facts.num_layers - 1) if given is None else int(given)]
    if kind == "cls_mean":
        given = params.get("layers")
        last = max(facts.feature_layer - 1, 0)
        return [layer for layer in (last - 2, last - 1, last) if layer >= 0] if given is None else list(given)
    return []
