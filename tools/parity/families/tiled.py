"""What the oracles of families with square tiles share: whose tiles are whose, how patches become tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.tools.parity.facts import EncoderFacts
from foveate.tools.parity.families import Encoded, ItemTrace, Video
from foveate.tools.parity.families.base import TextOracle

# First and last tile (excluded) of each image, then of each video: ours, so transformers must not see it.
BOUNDS = "tiles_of_items"


@dataclass(frozen=True)
class Encoder:
    """What the encoder made of all tiles: `state` [t, r, w] became the features, `projected` [t, m, d].

    `layers`, `query` and `key` have one [t, r, w] for each layer; the first `leading` of the r rows are CLS.
    """

    state: Tensor
    projected: Tensor
    layers: Sequence[Tensor]
    query: Sequence[Tensor]
    key: Sequence[Tensor]
    leading: int = 0


class TiledOracle(TextOracle):
    """An item is one or more square tiles of m tokens each; a token stands for `side` x `side` patches."""

    side: int
    feature_layer: int

    def tiles(self, inputs: Mapping[str, Any]) -> Tensor:
        """All tiles of a prompt [t, 3, s, s]."""
        raise NotImplementedError

    def encoder(self, inputs: Mapping[str, Any]) -> Encoder:
        """transformers' encoder over all of them."""
        raise NotImplementedError

    @property
    def tokens_per_tile(self) -> int:
        """As the processor has it."""
        raise NotImplementedError

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image],
        videos: Sequence[Video] = (),
    ) -> Encoded:
        """As transformers does, and which tiles belong to which item. The tiles stand in the text's order."""
        encoded = super().encode(messages, images, videos)
        bounds: dict[str, list[tuple[int, int]]] = {"image": [], "video": []}
        start = 0
        for number, kind in enumerate(encoded.kinds):
            stop = start + encoded.item.count(number) // self.tokens_per_tile
            bounds[kind].append((start, stop))
            start = stop
        return replace(encoded, inputs={**encoded.inputs, BOUNDS: (*bounds["image"], *bounds["video"])})

    def generate(self, encoded: Encoded, max_new_tokens: int, eos: Sequence[int]) -> tuple[int, ...]:
        """transformers' own greedy `generate`, with its cache."""
        known = {name: value for name, value in encoded.inputs.items() if name != BOUNDS}
        return super().generate(replace(encoded, inputs=known), max_new_tokens, eos)

    def pixels(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The processor's tiles: those of each image, then those of each video."""
        if "pixel_values" not in inputs:
            return []
        every = self.tiles(inputs)
        return [{"pixel_values": every[start:stop].numpy()} for start, stop in inputs[BOUNDS]]

    @torch.no_grad()
    def items(self, inputs: Mapping[str, Any]) -> list[ItemTrace]:
        """Each image, then each video."""
        if "pixel_values" not in inputs:
            return []
        made = self.encoder(inputs)
        return [self._item(made, start, stop) for start, stop in inputs[BOUNDS]]

    def _item(self, made: Encoder, start: int, stop: int) -> ItemTrace:
        state = made.state[start:stop]
        projected = made.projected[start:stop].flatten(0, 1)  # t m d -> (t m) d
        patches = state[:, made.leading :].numpy()
        layers = int(self.config.vision_config.num_hidden_layers)
        facts = EncoderFacts(
            patches=patches,
            cls=state[:, 0].numpy() if made.leading else None,
            query={i: rows[start:stop].numpy() for i, rows in enumerate(made.query)},
            key={i: rows[start:stop].numpy() for i, rows in enumerate(made.key)},
            num_heads=int(self.config.vision_config.num_attention_heads),
            num_layers=layers,
            feature_layer=self.feature_layer,
            global_layers=tuple(range(layers)),
            pool=lambda scores: mean_of_squares(scores, self.side),
            tile=np.repeat(np.arange(stop - start), self.tokens_per_tile),
            pooled=None,
            projected=projected.numpy(),
        )
        # What follows the layer that is selected is not in the graph.
        read = {i: made.layers[i][start:stop] for i in range(self.feature_layer)}
        return ItemTrace(projected=projected, facts=facts, layers=read)


def mean_of_squares(scores: np.ndarray, side: int) -> np.ndarray:
    """Patch scores [t, p] to token scores [n]: each token is a square of `side` x `side` patches."""
    grid = round(scores.shape[1] ** 0.5)
    means = []
    for tile in scores:
        for row in range(0, grid, side):
            for column in range(0, grid, side):
                own = [
                    tile[y * grid + x] for y in range(row, row + side) for x in range(column, column + side)
                ]
                means.append(sum(own) / len(own))
    return np.array(means, scores.dtype)
