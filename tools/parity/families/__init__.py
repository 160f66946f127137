"""transformers' own models behind one small interface: one file per family, each with a class `Oracle`.

Nothing here comes from `foveate.export` or `foveate.pruning`. What differs between families in the reference
is here; what prunes, cuts and generates is `foveate.tools.parity.reference`. Most of it is shared: `base`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.tools.parity.facts import EncoderFacts

T = TypeVar("T")

Video = tuple[Sequence[Image.Image], float]
"""Frames, and how many of them make a second."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as transformers' own processor gives it: ids with every visual token written out.

    `text` has every placeholder replaced by its visual tokens and their markers. `visual` bool [s] marks
    visual tokens; `item` [s] says which image or video (-1: text), counted in the order of the text; `inputs`
    are the model's other inputs by transformers' names (pixel_values, image_grid_thw, ...), `offsets` [s, 2]
    the span of each token in `text` ((0, 0) for visual ones); `kinds` says "image" or "video" of each item.
    """

    text: str
    input_ids: tuple[int, ...]
    visual: tuple[bool, ...]
    item: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    inputs: Mapping[str, Any]
    kinds: tuple[str, ...] = ()

    def in_order(self, images_first: Sequence[T]) -> list[T]:
        """Things that come one for each image, then one for each video, in the order of the items."""
        images = iter(images_first[: self.kinds.count("image")])
        videos = iter(images_first[self.kinds.count("image") :])
        return [next(images if kind == "image" else videos) for kind in self.kinds]


@dataclass(frozen=True)
class ItemTrace:
    """What transformers computes for one image or video of n visual tokens.

    `projected` [n, d] is what the decoder reads; of its rows, those before the last `len(facts.tile)` are no
    candidates and always stay; `deepstack` [levels, n, d] what is added after its first layers (None
    without); `facts` the encoder site's evidence; `layers[i]` [t, r, w] the output of encoder layer i, in the
    order of rows that our graph has (empty: not compared); `features` [n, c] what the connector reads, where
    that is what our graph gives (None: not compared).
    """

    projected: Tensor
    facts: EncoderFacts
    deepstack: Tensor | None = None
    layers: Mapping[int, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


class LayerRun(NamedTuple):
    """One decoder layer over s rows.

    `out` [s, d]; `attention` [h, s, s]: probabilities over this sequence *without any sliding window*
    (relevance is never cut by one); `query_plain` [h, s, e] and `key_plain` [g, s, e] before the rotation
    (after norms), `query` and `key` behind it; `scale` of the softmax.
    """

    out: Tensor
    attention: Tensor
    query_plain: Tensor
    key_plain: Tensor
    scale: float
    query: Tensor
    key: Tensor


class Oracle(Protocol):
    """One checkpoint of one family, in float32 with eager attention."""

    model: Any
    """transformers' ...ForConditionalGeneration."""

    config: Any
    """Its configuration."""

    text: Any
    """Its text model: has `layers`, `embed_tokens`, `norm`, `rotary_emb`."""

    takes_videos: bool
    """Whether the family reads videos."""

    mixes_kinds: bool
    """Whether transformers reads images and videos in one prompt."""

    def __init__(self, checkpoint: Path) -> None: ...

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image],
        videos: Sequence[Video] = (),
    ) -> Encoded:
        """transformers' processor: chat template, ids, pixels."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids."""

    def token(self, number: int) -> str:
        """How the vocabulary writes one token."""

    def items(self, encoded_inputs: Mapping[str, Any]) -> list[ItemTrace]:
        """The vision side of every item: images, then videos. Raises what transformers raises."""

    def pixels(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """What the vision graph should be fed with for each item, by the graph's names; some of them suffice.

        It is compared with what the runtime's preprocessor makes of the same picture. Empty: not compared.
        """

    def positions(self, encoded: Encoded) -> np.ndarray:
        """transformers' position ids of the unpruned prompt: int64 [s, axes]."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """Text rows [s, d] of ids [s] as they enter layer 0 (Gemma scales them)."""

    def project(self, features: Tensor) -> Tensor:
        """Rows [k, c] that a method rewrote through the family's connector: [k, d].

        Raises NoOracleError where the connector takes no single rows.
        """

    def read(self, input_ids: Tensor) -> Tensor:
        """The text model on BOS, where it has one, and ids [t]: last hidden states behind the norm."""

    def layer(self, index: int, hidden: Tensor, positions: Tensor, block: Tensor) -> LayerRun:
        """One decoder layer over rows `hidden` [s, d] at `positions` [s, axes].

        Causal by row order, plus what the family adds: `block` int64 [s] numbers the images (-1: text) for
        families whose image tokens see each other.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head (and soft cap): [s, d] -> [s, v]."""

    def generate(self, encoded: Encoded, max_new_tokens: int, eos: Sequence[int]) -> tuple[int, ...]:
        """transformers' own greedy `generate` of the unpruned model, with its cache."""


def find_oracle(family: str) -> type[Oracle]:
    """The oracle class of a family."""
    module = importlib.import_module(f"foveate.tools.parity.families.{family}")
    return cast("type[Oracle]", module.Oracle)
