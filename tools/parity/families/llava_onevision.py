"""LLaVA-OneVision: SigLIP on tiles or frames, packed by transformers' own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from foveate.tools.parity.facts import EncoderFacts
from foveate.tools.parity.families import ItemTrace
from foveate.tools.parity.families.base import TextOracle, tapped
from foveate.tools.parity.families.llava_next import ends_by_line, without_ends

Pack = Callable[[Tensor], Tensor]
"""Rows [t, p, x] of patches to rows [n, x] of tokens, by transformers; line ends are NaN."""


class Frames:
    """Does what transformers' video processor does, with Pillow: that one needs torchvision."""

    def __init__(self, images: Any) -> None:
        self._images = images
        self._style = (images.image_mean, images.image_std)
        self.model_input_names = ["pixel_values_videos"]

    def __call__(self, videos: Sequence[np.ndarray], **_: Any) -> dict[str, Any]:
        """Videos [f, height, width, 3] to `pixel_values_videos` [b, f, 3, size, size]."""
        return {"pixel_values_videos": torch.stack([self._video(frames) for frames in videos])}

    def _video(self, frames: np.ndarray) -> Tensor:
        size = (self._images.size["height"], self._images.size["width"])
        mean, std = (np.array(style)[:, None, None] for style in self._style)
        made = []
        for frame in frames:
            picture = Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC)
            scaled = np.asarray(picture, np.float64).transpose(2, 0, 1) / 255  # h w c -> c h w
            made.append((scaled - mean) / std)
        return torch.from_numpy(np.stack(made).astype(np.float32))


class Oracle(TextOracle):
    """transformers' LLaVA-OneVision."""

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        super().__init__(checkpoint)
        self.tower = self.model.model.vision_tower
        self.layers = int(self.config.vision_config.num_hidden_layers)
        chosen = self.config.vision_feature_layer
        self.feature_layer = int(chosen if isinstance(chosen, int) else chosen[-1]) % (self.layers + 1)

    def video_processor(self, checkpoint: Path) -> Frames:
        """A stand-in: see `Frames`."""
        images: Any = AutoImageProcessor
        return Frames(images.from_pretrained(checkpoint, backend="pil"))

    def pixels(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The processor's tiles and frames, item by item [t, 3, size, size]."""
        tiles = [pixels for pixels, _, _ in self._images(inputs)]
        return [{"pixel_values": pixels.numpy()} for pixels in (*tiles, *self._videos(inputs))]

    @torch.no_grad()
    def items(self, inputs: Mapping[str, Any]) -> list[ItemTrace]:
        """Each image of `pixel_values` [b, tiles, 3, size, size], then each of `pixel_values_videos`."""
        model, found = self.model.model, []
        asked = {"output_hidden_states": True, "return_dict": True}
        for pixels, size, several in self._images(inputs):
            with self._tapped() as taps:
                number = torch.tensor([1 + several])
                made = model.get_image_features(pixels[None], size[None], batch_num_images=number, **asked)
            # Only an image that is alone has lines, behind its first tile.
            whole = 0 if several else made.hidden_states[0].shape[1]
            found.append(self._trace(made, taps, self._pack_image(size), whole))
        for pixels in self._videos(inputs):
            with self._tapped() as taps:
                made = model.get_video_features(pixels[None], **asked)
            found.append(self._trace(made, taps, self._pack_video, 0))
        return found

    def _images(self, inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor, bool]]:
        """Tiles [t, 3, size, size] and size [2] of each image, and whether it is one of several."""
        if "pixel_values" not in inputs:
            return []
        several = int(inputs["batch_num_images"][0]) != 1
        found = []
        for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"], strict=True):
            tiles = image_size_to_num_patches(
                size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
            )
            found.append((pixels[: 1 if several else tiles], size, several))
        return found

    def _videos(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        return list(inputs.get("pixel_values_videos", ()))

    def _tapped(self) -> AbstractContextManager[dict[tuple[str, int], list[Any]]]:
        """What the projections of the tower and its last norm give meanwhile."""
        layers = self.tower.encoder.layers
        modules = {("query", i): layer.self_attn.q_proj for i, layer in enumerate(layers)}
        modules |= {("key", i): layer.self_attn.k_proj for i, layer in enumerate(layers)}
        return tapped(modules | {("normed", 0): self.tower.post_layernorm})

    def _pack_image(self, size: Tensor) -> Pack:
        def pack(rows: Tensor) -> Tensor:
            line_end = torch.full(rows.shape[2:], torch.nan)
            limit = self.config.vision_aspect_ratio
            (packed, *_), _ = self.model.model.pack_image_features([rows], size[None], line_end, limit)
            return torch.as_tensor(packed)

        return pack

    def _pack_video(self, rows: Tensor) -> Tensor:
        pooled = self.model.model.apply_pooling(rows)  # f p x -> f n x
        return torch.cat([pooled.flatten(0, 1), torch.full((1, rows.shape[2]), torch.nan)])

    def _trace(
        self, made: Any, taps: Mapping[tuple[str, int], list[Any]], pack: Pack, whole: int
    ) -> ItemTrace:
        """Of what transformers gave; the first `whole` tokens have no line end."""
        hidden, projected = made.hidden_states, made.pooler_output[0]
        state = hidden[self.feature_layer]  # [t, p, w]
        tiles, patches = state.shape[:2]

        def pool(scores: np.ndarray) -> np.ndarray:
            rows = torch.from_numpy(np.asarray(scores, np.float32))[:, :, None]
            return ends_by_line(pack(rows)[:, 0].numpy(), whole, max)

        heaviest = pack(torch.eye(tiles * patches).reshape(tiles, patches, -1)).numpy()  # n (t p)
        tile = np.where(np.isnan(heaviest[:, 0]), np.nan, heaviest.argmax(axis=1) // patches)
        facts = EncoderFacts(
            patches=state.numpy(),
            cls=None,
            query={i: taps["query", i][0].numpy() for i in range(self.layers)},
            key={i: taps["key", i][0].numpy() for i in range(self.layers)},
            num_heads=int(self.config.vision_config.num_attention_heads),
            num_layers=self.layers,
            feature_layer=self.feature_layer,
            global_layers=tuple(range(self.layers)),
            pool=pool,
            tile=ends_by_line(tile, whole, lambda line: line[-1]).astype(np.int64),
            pooled=self._pooled(taps["normed", 0][0]),
            projected=projected.numpy(),
            ends=lambda scores: ends_by_line(without_ends(scores, heaviest[:, 0]), whole, max),
        )
        layers = {n: hidden[n + 1] for n in range(self.feature_layer)}
        return ItemTrace(projected=projected, facts=facts, layers=layers, features=projected)

    def _pooled(self, normed: Tensor) -> np.ndarray | None:
        """Probabilities [t, p] of the pooling head's query, the mean over heads; None without a head."""
        if not self.config.vision_config.vision_use_head:
            return None
        head = self.tower.head
        probe = head.probe.repeat(len(normed), 1, 1)
        _, probabilities = head.attention(probe, normed, normed, need_weights=True)
        return np.asarray(probabilities[:, 0].numpy())  # t 1 p -> t p
