"""From a cut's evidence to the indices that stay, by the loop-written rules of `oracles.py`.

The evidence is transformers' own: raw projections of the vision tower, the probabilities that eager attention
really used in the decoder. A decision that float32 noise could turn is marked `fragile`: it is no test input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.tools.parity import oracles
from foveate.tools.parity.tolerances import SCORE_NOISE

Params = Mapping[str, Any]


class NoOracleError(LookupError):
    """No independent rule is written for a method, so nothing can be said about its bundle."""


@dataclass(frozen=True)
class Budget:
    """What a request allows at one site; 0 leaves the count to the method's rule. `seed` is for random."""

    keep_ratio: float = 0.0
    keep_tokens: int = 0
    seed: int = 0

    @property
    def amount(self) -> dict[str, Any]:
        """The two sizes as keyword arguments of an oracle."""
        return {"keep_ratio": self.keep_ratio, "keep_tokens": self.keep_tokens}


@dataclass(frozen=True)
class Choice:
    """Kept indices, ascending; `fragile` when noise of float32's size could change them."""

    kept: tuple[int, ...]
    fragile: bool = False


@dataclass(frozen=True)
class EncoderFacts:
    """What transformers computed for one item (image or video): n candidates, t tiles of p patches.

    `patches` [t, p, w] and `cls` [t, w] are rows of the hidden state that the features are made of; `query`
    and `key` hold layer -> [t, r, width] as they enter the dot product, heads side by side, r = p or (CLS
    first) p + 1. `feature_layer` counts hidden states: 0 the embeddings, i the output of layer i - 1.
    `pool` turns patch scores [t, p] into n candidate scores, by the family's own loops; `tile` [n] says
    which crop or frame a candidate shows. `pooled` [t, p]: probabilities of the pooling head's query, mean
    over heads. `projected` [n, d], `prompt` [d]: candidates and mean of the user's words in the decoder's
    embedding space. `ends` gives line ends among scores [n] the best of their line; None without any.
    """

    patches: np.ndarray
    cls: np.ndarray | None
    query: Mapping[int, np.ndarray]
    key: Mapping[int, np.ndarray]
    num_heads: int
    num_layers: int
    feature_layer: int
    global_layers: Sequence[int]
    pool: Callable[[np.ndarray], Sequence[float] | np.ndarray]
    tile: Sequence[int] | np.ndarray
    pooled: np.ndarray | None = None
    projected: np.ndarray | None = None
    prompt: np.ndarray | None = None
    ends: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def has_cls(self) -> bool:
        """Whether row 0 of a tile's queries and keys is a CLS token."""
        return self.cls is not None


@dataclass(frozen=True)
class DecoderFacts:
    """What transformers computed in the layer before a cut, for the `s` rows that reach the cut.

    `attention` [h, s, s]: probabilities; `query_plain` [h, s, head], `key_plain` [g, s, head]: before RoPE;
    `roles` [s]: 0 protected, 1 visual, 2 question text; `question`: rows that define relevance.
    """

    attention: np.ndarray
    query_plain: np.ndarray
    key_plain: np.ndarray
    roles: Sequence[int]
    question: Sequence[int]
    scale: float


def choose_encoder(method: str, params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay. Raises NoOracleError."""
    return _find(_ENCODER, method, "encoder")(params, facts, budget)


def choose_decoder(method: str, params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay. Raises NoOracleError."""
    if oracles.VISUAL not in facts.roles:
        return Choice(tuple(range(len(facts.roles))))
    return _find(_DECODER, method, "decoder")(params, facts, budget)


def _find(table: Mapping[str, Callable[..., Choice]], method: str, site: str) -> Callable[..., Choice]:
    if method not in table:
        raise NoOracleError(
            f"no oracle is written for method '{method}' at the {site} site; there are: {', '.join(table)}"
        )
    return table[method]


def _cls_knee(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
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
    return _made_of(tiles, facts.pool, params, facts, budget)


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


def _saliency_knee(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    kind = params.get("score", "received")
    if kind == "prompt":
        if facts.projected is None or facts.prompt is None:
            raise NoOracleError("score=prompt needs the projected candidates and the words of the prompt")
        scores = oracles.prompt_scores(facts.projected, facts.prompt)
        return _made_of(scores, facts.ends or np.asarray, params, facts, budget)
    if kind == "pooled":
        if facts.pooled is None:
            raise NoOracleError("score=pooled needs a pooling head")
        return _made_of(facts.pooled, facts.pool, params, facts, budget)
    layer = _looking_layer(params, facts)
    tiles = [
        oracles.received_scores(query, key, facts.num_heads, skip=int(facts.has_cls))
        for query, key in zip(facts.query[layer], facts.key[layer], strict=True)
    ]
    return _made_of(tiles, facts.pool, params, facts, budget)


def _looking_layer(params: Params, facts: EncoderFacts) -> int:
    """The last layer under the features in which a patch sees its whole tile; else the first such layer."""
    if params.get("layer") is not None:
        return int(params["layer"])
    under = [layer for layer in facts.global_layers if layer < facts.feature_layer]
    return max(under) if under else min(facts.global_layers)


def _made_of(
    parts: Sequence[Any] | np.ndarray,
    make: Callable[[np.ndarray], Sequence[float] | np.ndarray],
    params: Params,
    facts: EncoderFacts,
    budget: Budget,
) -> Choice:
    """A choice by scores that are made of others: of patches' [t, p], of candidates' without line ends [n].

    Candidates that have one score whatever its parts are (a line end has its line's best) share its noise.
    """
    plain = np.asarray(parts, dtype=np.float64)
    noise = np.random.default_rng(0).uniform(-SCORE_NOISE, SCORE_NOISE, plain.shape)
    scores, moved = ([float(s) for s in make(p)] for p in (plain, plain * (1 + noise)))
    pairs = list(zip(scores, moved, strict=True))
    return _headed(scores, params, facts, budget, together=[pairs.index(pair) for pair in pairs])


def _headed(
    scores: Sequence[float],
    params: Params,
    facts: EncoderFacts,
    budget: Budget,
    together: Sequence[int] = (),
) -> Choice:
    tile = [int(name) for name in facts.tile]
    return _decided(lambda s: oracles.encoder_order(s, params, tile=tile, **budget.amount), scores, together)


def _text_relevance(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    length, which = len(facts.roles), params.get("query", "text")
    if params.get("rope_free", False):
        scores, rows = oracles.decoder_scores(
            facts.query_plain, facts.key_plain, facts.roles, facts.question, length, facts.scale, which
        )
    else:
        scores, rows = received_attention(facts, oracles.question_rows(facts.question, length, which))
    return _decided(
        lambda s: oracles.decoder_choice(s, rows, facts.roles, length, params, **budget.amount), scores
    )


def received_attention(facts: DecoderFacts, question: Sequence[int]) -> tuple[list[float], list[int]]:
    """Mean real attention that each row receives from the question rows after it, and their number."""
    mean = facts.attention.astype(np.float64).mean(axis=0)  # h s s -> s s
    total, rows = [0.0] * len(facts.roles), [0] * len(facts.roles)
    for asking in question:
        for j in range(asking + 1):
            if j == asking and facts.roles[j] == oracles.TEXT:
                continue  # attention to oneself says nothing
            total[j] += float(mean[asking, j])
            rows[j] += 1
    return [value / max(count, 1) for value, count in zip(total, rows, strict=True)], rows


def _random_encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    count = len(facts.tile)
    return _hashed(range(count), range(0), count, params, budget)


def _random_decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    visual = [row for row, role in enumerate(facts.roles) if role == oracles.VISUAL]
    others = [row for row, role in enumerate(facts.roles) if role != oracles.VISUAL]
    return _hashed(visual, others, len(facts.roles), params, budget)


def _hashed(
    candidates: Sequence[int], others: Sequence[int], size: int, params: Params, budget: Budget
) -> Choice:
    """Random choice: whole numbers, so never fragile."""
    chosen = oracles.random_order(candidates, others, size, params, seed=budget.seed, **budget.amount)
    return Choice(tuple(chosen.order[: chosen.count]))


def _decided(
    decide: Callable[[Sequence[float]], oracles.Choice],
    scores: Sequence[float],
    together: Sequence[int] = (),
) -> Choice:
    chosen = decide(scores)
    fragile = oracles.fragile(decide, scores, noise=SCORE_NOISE, together=together)
    return Choice(tuple(chosen.order[: chosen.count]), fragile)


_ENCODER: dict[str, Callable[..., Choice]] = {
    "cls-knee": _cls_knee,
    "saliency-knee": _saliency_knee,
    "random": _random_encoder,
}
_DECODER: dict[str, Callable[..., Choice]] = {"text-relevance": _text_relevance, "random": _random_decoder}
