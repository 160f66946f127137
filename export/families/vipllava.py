"""ViP-LLaVA (arXiv 2312.00784): LLaVA-1.5 that reads several layers of its encoder, through a norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from foveate.export.blocks.norm import LayerNorm
from foveate.export.blocks.projector import read_feature_layers
from foveate.export.config import Reader
from foveate.export.families import Facts, llava
from foveate.export.families.llava import (
    Vision,
    candidates,
    constants,
    encoder_shape,
    is_unused,
    rename_weight,
    runtime_facts,
    vision_inputs,
)

__all__ = [
    "FACTS",
    "Config",
    "Connector",
    "Vision",
    "candidates",
    "constants",
    "encoder_shape",
    "is_unused",
    "rename_weight",
    "runtime_facts",
    "vision_inputs",
]

FACTS: Final = Facts(
    title="ViP-LLaVA",
    checkpoints=("llava-hf/vip-llava-7b-hf", "llava-hf/vip-llava-13b-hf"),
    text_models=("llama", "mistral", "qwen2"),
    scores=("cls_full", "cls_mean", "cosine", "received", "prompt"),
    default_plan=("cls-knee", "text-relevance@2"),
    visual_tokens="(image_size / patch_size)^2, 576 at 336 px",
    differs=(
        "vision towers other than CLIP are refused",
        "bundles stop at the text model's sliding window, where it has one",
    ),
)
_DEFAULT_LAYERS: Final = [-2, -5, -8, -11, 6]
# What a LLaVA may choose and a ViP-LLaVA may not: transformers reads neither key of its config.json.
_FIXED: Final[Mapping[str, Any]] = {
    "vision_feature_select_strategy": "default",
    "multimodal_projector_bias": True,
}


@dataclass(frozen=True)
class Config(llava.Config):
    """A ViP-LLaVA checkpoint's configuration."""

    projector_norm_eps: float = 1e-5

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        reader = Reader(config, "config")
        base = llava.Config.read({**config, **_FIXED, "vision_feature_layer": -1})
        # The published checkpoints have the plural, which transformers prefers to the singular as well.
        names = ("vision_feature_layers", "vision_feature_layer")
        key = next((name for name in names if config.get(name) is not None), names[-1])
        layers = read_feature_layers(reader, base.vision.num_layers, _DEFAULT_LAYERS, key)
        eps = reader.positive("projector_layernorm_eps", 1e-5)
        return Config(**{**vars(base), "feature_layers": layers}, projector_norm_eps=eps)

    @property
    def scored_layer(self) -> int:
        """The deepest: published checkpoints name an early layer last, which says little about meaning."""
        return max(self.feature_layers)


class Connector(llava.Connector):
    """LLaVA's, behind a norm over the features of all layers together: `[k, c] -> [k, d]`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.projector_layernorm = LayerNorm(config.feature_width, config.projector_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(self.projector_layernorm(x))
        return y
