"""LLaVA-NeXT: CLIP on tiles of a picture, packed by transformers' own `pack_image_features`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from foveate.tools.parity.facts import EncoderFacts
from foveate.tools.parity.families import ItemTrace
from foveate.tools.parity.families.base import TextOracle, tapped


class Oracle(TextOracle):
    """transformers' LLaVA-NeXT."""

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        super().__init__(checkpoint)
        self.tower = self.model.model.vision_tower
        if self.processor.patch_size is None:
            # Without processor_config.json the model says what the processor has to know.
            self.processor.patch_size = self.config.vision_config.patch_size
            self.processor.vision_feature_select_strategy = self.config.vision_feature_select_strategy
            self.processor.num_additional_image_tokens = 1
        self.layers = int(self.config.vision_config.num_hidden_layers)
        chosen = self.config.vision_feature_layer
        self.feature_layer = int(chosen if isinstance(chosen, int) else chosen[-1]) % (self.layers + 1)

    def pixels(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The processor's tiles, image by image [t, 3, size, size], without those that fill up the batch."""
        return [{"pixel_values": pixels.numpy()} for pixels, _ in self._images(inputs)]

    @torch.no_grad()
    def items(self, inputs: Mapping[str, Any]) -> list[ItemTrace]:
        """Each image of `pixel_values` [b, tiles, 3, size, size]."""
        return [self._trace(pixels, size) for pixels, size in self._images(inputs)]

    def _images(self, inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Tiles [t, 3, size, size] and size [2] of each image."""
        if "pixel_values" not in inputs:
            return []
        found = []
        for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"], strict=True):
            tiles = image_size_to_num_patches(
                size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
            )
            found.append((pixels[:tiles], size))
        return found

    def _trace(self, pixels: Tensor, size: Tensor) -> ItemTrace:
        towers = self.tower.encoder.layers
        modules = {("query", i): layer.self_attn.q_proj for i, layer in enumerate(towers)}
        modules |= {("key", i): layer.self_attn.k_proj for i, layer in enumerate(towers)}
        with tapped(modules) as taps:
            made = self.model.model.get_image_features(
                pixels[None], size[None], output_hidden_states=True, return_dict=True
            )
        projected, hidden = made.pooler_output[0], made.hidden_states
        state = hidden[self.feature_layer]  # [t, p + 1, w]
        tiles, patches = state.shape[0], state.shape[1] - 1

        def pack(values: np.ndarray) -> np.ndarray:
            """Numbers of patches [t, p] as transformers would pack their features; NaN for line ends."""
            column = torch.from_numpy(np.asarray(values, np.float32)).reshape(tiles, patches, 1)
            ((packed,), _) = self.model.model.pack_image_features(
                [column], size[None], "default", image_newline=torch.full((1,), torch.nan)
            )
            return np.asarray(packed[:, 0].numpy())

        facts = EncoderFacts(
            patches=state[:, 1:].numpy(),
            cls=state[:, 0].numpy(),
            query={i: taps["query", i][0].numpy() for i in range(self.layers)},
            key={i: taps["key", i][0].numpy() for i in range(self.layers)},
            num_heads=int(self.config.vision_config.num_attention_heads),
            num_layers=self.layers,
            feature_layer=self.feature_layer,
            global_layers=tuple(range(self.layers)),
            pool=lambda scores: ends_by_line(pack(scores), patches, max),
            tile=ends_by_line(
                pack(np.repeat(np.arange(tiles)[:, None], patches, 1)), patches, lambda line: line[-1]
            ).astype(np.int64),
            pooled=None,
            projected=projected.numpy(),
            ends=lambda scores: ends_by_line(without_ends(scores, pack(state[:, 1:, 0])), patches, max),
        )
        return ItemTrace(
            projected=projected, facts=facts, layers={n: hidden[n + 1] for n in range(self.feature_layer)}
        )


def without_ends(values: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """The values [n], NaN where the packed ones are."""
    return np.where(np.isnan(packed), np.nan, values)


def ends_by_line(values: np.ndarray, first: int, of_line: Callable[[list[float]], float]) -> np.ndarray:
    """The values [n] of tokens with what `of_line` makes of a line in the place of its end (NaN).

    The first `first` tokens are the whole picture, which has no line end; a line without tokens
    stands for it.
    """
    done = values.copy()
    line: list[float] = []
    for token in range(first, len(values)):
        if np.isnan(values[token]):
            done[token] = of_line(line or [float(value) for value in values[:first]])
            line = []
        else:
            line.append(float(values[token]))
    return done
