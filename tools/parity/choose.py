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
    """What transformers computed for one image.

    `features` [n, c] and `cls` [c] are rows of one hidden state; `query[i]` and `key[i]` [n+1, c] the raw
    projections of encoder layer i; `feature_layer` the number of the layer whose output LLaVA selects (-1:
    the embeddings).
    """

    features: np.ndarray
    cls: np.ndarray
    query: Sequence[np.ndarray]
    key: Sequence[np.ndarray]
    num_heads: int
    feature_layer: int


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
    """Patches of one image that stay. Raises NoOracleError."""
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
    layers = _scored_layers(kind, params, facts)
    scores = oracles.encoder_scores(
        kind,
        features=facts.features,
        cls=facts.cls,
        query={layer: facts.query[layer] for layer in layers},
        key={layer: facts.key[layer] for layer in layers},
        num_heads=facts.num_heads,
    )
    return _decided(lambda s: oracles.encoder_order(s, params, **budget.amount), scores)


def _scored_layers(kind: str, params: Params, facts: EncoderFacts) -> list[int]:
    """cls_full looks at the layer that reads the features, cls_mean at the three that lead up to them."""
    if kind == "cls_full":
        given = params.get("layer")
        return [min(facts.feature_layer + 1, len(facts.query) - 1) if given is None else int(given)]
    if kind == "cls_mean":
        given = params.get("layers")
        last = max(facts.feature_layer, 0)
        return [layer for layer in (last - 2, last - 1, last) if layer >= 0] if given is None else list(given)
    return []


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
    count = len(facts.features)
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


def _decided(decide: Callable[[Sequence[float]], oracles.Choice], scores: Sequence[float]) -> Choice:
    chosen = decide(scores)
    return Choice(tuple(chosen.order[: chosen.count]), oracles.fragile(decide, scores, noise=SCORE_NOISE))


_ENCODER: dict[str, Callable[..., Choice]] = {"cls-knee": _cls_knee, "random": _random_encoder}
_DECODER: dict[str, Callable[..., Choice]] = {"text-relevance": _text_relevance, "random": _random_decoder}
