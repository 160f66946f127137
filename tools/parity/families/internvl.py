"""InternVL: InternViT over tiles, pixel shuffle, a projector, a Qwen or Llama text model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor

from foveate.tools.parity.families.base import tapped
from foveate.tools.parity.families.tiled import Encoder, TiledOracle


class Oracle(TiledOracle):
    """transformers' InternVL."""

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        super().__init__(checkpoint)
        self.side = round(1 / self.config.downsample_ratio)
        layers = int(self.config.vision_config.num_hidden_layers)
        self.feature_layer = int(self.config.vision_feature_layer) % (layers + 1)

    def video_processor(self, checkpoint: Path) -> Any:
        """Frames as the image processor makes them of whole pictures."""
        images: Any = AutoImageProcessor
        return _Frames(images.from_pretrained(checkpoint, backend="pil"))

    @property
    def tokens_per_tile(self) -> int:
        """As the processor has it."""
        return int(self.processor.image_seq_length)

    def tiles(self, inputs: Mapping[str, Any]) -> Tensor:
        """All tiles of a prompt [t, 3, s, s]."""
        every: Tensor = inputs["pixel_values"]
        return every

    def encoder(self, inputs: Mapping[str, Any]) -> Encoder:
        """InternViT with its taps behind the norms of queries and keys."""
        tower = self.model.model.vision_tower
        layers = tower.encoder.layer
        modules: dict[tuple[str, int], Any] = {("layer", i): layer for i, layer in enumerate(layers)}
        modules |= {("query", i): layer.attention.q_norm for i, layer in enumerate(layers)}
        modules |= {("key", i): layer.attention.k_norm for i, layer in enumerate(layers)}
        modules |= {("first", 0): tower.embeddings, ("last", 0): tower.layernorm}
        with tapped(modules) as taps:
            projected = self.model.model.get_image_features(self.tiles(inputs)).pooler_output
        states = [taps["first", 0][0], *(taps["layer", i][0] for i in range(len(layers)))]
        normed = self.config.vision_feature_layer == -1
        return Encoder(
            state=taps["last", 0][0] if normed else states[self.feature_layer],
            projected=projected,
            layers=states[1:],
            query=[taps["query", i][0] for i in range(len(layers))],
            key=[taps["key", i][0] for i in range(len(layers))],
            leading=1,
        )


class _Frames:
    """Stands for InternVL's video processor: every frame is one tile."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __call__(self, videos: Sequence[np.ndarray], **options: Any) -> dict[str, Any]:
        made = [
            self.images(list(frames), crop_to_patches=False, return_tensors="pt")["pixel_values"]
            for frames in videos
        ]
        return {"pixel_values_videos": torch.stack(made)}
