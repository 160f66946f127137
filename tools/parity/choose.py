"""From a cut's evidence to the indices that stay, by the loop-written rules of `oracles.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Budget:
    """What a request allows at one site; 0 leaves the count to the method's rule. `seed` is for random."""

    keep_ratio: float = 0.0
    keep_tokens: int = 0
    seed: int = 0


@dataclass(frozen=True)
class EncoderFacts:
    """What transformers computed for one image.

    `features` [n, c] and `cls` [c] are rows of one hidden state; `query[i]` and `key[i]` [n+1, c] the raw projections
    of encoder layer i; `feature_layer` the number of the layer whose output LLaVA selects (-1: the embeddings).
    """

    features: np.ndarray
    cls: np.ndarray
    query: Sequence[np.ndarray]
    key: Sequence[np.ndarray]
    num_heads: int
    feature_layer: int


@dataclass(frozen=True)
class DecoderFacts:
    """What transformers computed in the layer before a cut, for the rows that reach the cut.

    `attention` [h, s, s]: probabilities; `query` [h, s, head], `key` [g, s, head] after RoPE, `*_plain` before it;
    `roles` [s]: 0 protected, 1 visual, 2 question text; `question`: rows that define relevance.
    """

    attention: np.ndarray
    query: np.ndarray
    key: np.ndarray
    query_plain: np.ndarray
    key_plain: np.ndarray
    roles: Sequence[int]
    question: Sequence[int]
    scale: float

def choose_encoder(*a): raise NotImplementedError
def choose_decoder(m,p,f,b):
    return [i for i,r in enumerate(f.roles) if r!=1 or i%2]
