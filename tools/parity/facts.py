"""What an oracle is told and what it answers: evidence by transformers, a budget, the choice.

The evidence is transformers' own: raw projections of the vision tower, the probabilities that eager attention
really used in the decoder. One item or one sequence at a time; every array is numpy's, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Params = Mapping[str, Any]

NOTHING = np.zeros(0, np.float32)
"""Evidence that was not made."""


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


@dataclass(frozen=True, eq=False)
class Choice:
    """Kept indices, ascending; `fragile` when noise of float32's size could change them.

    `features` [k, c] (encoder) or [k, d] (decoder): the rows of the kept ones, in their order, where the
    method rewrites rows; None where it only chooses.
    """

    kept: tuple[int, ...]
    fragile: bool = False
    features: np.ndarray | None = None

    def __eq__(self, other: object) -> bool:
        """Same indices and verdict; rewritten rows equal to the last bit."""
        if not isinstance(other, Choice):
            return NotImplemented
        mine, theirs = self.features, other.features
        same = mine is theirs if mine is None or theirs is None else np.array_equal(mine, theirs)
        return (self.kept, self.fragile) == (other.kept, other.fragile) and same

    __hash__ = None  # type: ignore[assignment]


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
    `features` [n, c]: what the connector takes. `hidden`: number of a hidden state -> [t, r, w], rows as in
    `query`. `text` [d]: the language model's last hidden state of the user's words alone, behind the final
    norm, at their last token. `extra` runs tokens [m, w] through the encoder beside the image, and gives
    their rows [m, w] at the feature layer. `grid`: rows and columns of the candidates, where an item is one
    rectangle of patches. `adapter`: the trained weights of this cut by their parameters' names.
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
    features: np.ndarray = field(default_factory=lambda: NOTHING)
    hidden: Mapping[int, np.ndarray] = field(default_factory=dict)
    text: np.ndarray | None = None
    extra: Callable[[np.ndarray], np.ndarray] | None = None
    grid: tuple[int, int] | None = None
    adapter: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def has_cls(self) -> bool:
        """Whether row 0 of a tile's queries and keys is a CLS token."""
        return self.cls is not None


@dataclass(frozen=True)
class DecoderFacts:
    """What transformers computed in the layer before a cut, for the `s` rows that reach the cut.

    `attention` [h, s, s]: probabilities; `query_plain` [h, s, e], `key_plain` [g, s, e]: before RoPE, `query`
    and `key` behind it; `roles` [s]: 0 protected, 1 visual, 2 question text; `question`: rows that define
    relevance; `scale`: of the softmax. `hidden` [s, d]: the layer's output; `embedded` [s, d]: what entered
    the decoder at these rows; `entered`: visual tokens that entered the decoder. `adapter`: the trained
    weights of this cut by their parameters' names.
    """

    attention: np.ndarray
    query_plain: np.ndarray
    key_plain: np.ndarray
    roles: Sequence[int]
    question: Sequence[int]
    scale: float
    query: np.ndarray = field(default_factory=lambda: NOTHING)
    key: np.ndarray = field(default_factory=lambda: NOTHING)
    hidden: np.ndarray = field(default_factory=lambda: NOTHING)
    embedded: np.ndarray = field(default_factory=lambda: NOTHING)
    entered: int = 0
    adapter: Mapping[str, np.ndarray] = field(default_factory=dict)
