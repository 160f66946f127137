"""Idefics3: SigLIP over tiles, pixel shuffle, a linear layer, a Llama text model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from foveate.tools.parity.families.base import tapped
from foveate.tools.parity.families.tiled import Encoder, TiledOracle


class Oracle(TiledOracle):
    """transformers' Idefics3."""

    text_model = "text_model"

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        super().__init__(checkpoint)
        self.side = int(self.config.scale_factor)
        self.feature_layer = int(self.config.vision_config.num_hidden_layers)

    @property
    def tokens_per_tile(self) -> int:
        """As the processor has it."""
        return int(self.processor.image_seq_len)

    def tiles(self, inputs: Mapping[str, Any]) -> Tensor:
        """All tiles of a prompt [t, 3, s, s]; transformers has an axis of conversations before them."""
        every: Tensor = inputs["pixel_values"].flatten(0, 1)
        return every

    def encoder(self, inputs: Mapping[str, Any]) -> Encoder:
        """SigLIP with its taps at the projections of queries and keys."""
        tower = self.model.model.vision_model
        layers = tower.encoder.layers
        modules: dict[tuple[str, int], Any] = {("layer", i): layer for i, layer in enumerate(layers)}
        modules |= {("query", i): layer.self_attn.q_proj for i, layer in enumerate(layers)}
        modules |= {("key", i): layer.self_attn.k_proj for i, layer in enumerate(layers)}
        modules |= {("last", 0): tower.post_layernorm, ("projected", 0): self.model.model.connector}
        with tapped(modules) as taps:
            self.model.model.get_image_features(
                inputs["pixel_values"], inputs.get("pixel_attention_mask"), return_dict=True
            )
        return Encoder(
            state=taps["last", 0][0],
            projected=taps["projected", 0][0],
            layers=[taps["layer", i][0] for i in range(len(layers))],
            query=[taps["query", i][0] for i in range(len(layers))],
            key=[taps["key", i][0] for i in range(len(layers))],
        )
