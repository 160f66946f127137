"""Qwen2.5-VL (arXiv 2502.13923): encoder with windows, 2 x 2 merger, Qwen2 with three-axis positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from foveate.export.blocks.qwen_vision import QwenVisionConfig, layer_numbers
from foveate.export.blocks.qwen_vl import (
    Connector,
    QwenVlConfig,
    Vision,
    candidates,
    constants,
    encoder_shape,
    is_unused,
    read_qwen_vl,
    rename_weight,
    runtime_facts,
    text_section,
    vision_inputs,
)
from foveate.export.config import Reader
from foveate.export.families import Facts

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
    title="Qwen2.5-VL",
    checkpoints=(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Qwen/Qwen2.5-VL-72B-Instruct",
    ),
    text_models=("qwen2_5_vl_text",),
    scores=("received", "prompt"),
    default_plan=("saliency-knee", "text-relevance@2"),
    visual_tokens="one per 28 x 28 pixels of the picture as the image processor scales it",
    video="frames in pairs, with their times in the positions",
    position_axes=3,
    position_modes=("original",),
    differs=(
        "video frames are scaled by Pillow, one by one; torchvision may round a pixel otherwise",
        "which frames of a video are looked at is the caller's choice, not the video processor's",
        "videos have no bound on all frames together (transformers' cap_pixels_per_frame)",
        "bundles stop at the text model's sliding window, where it is switched on",
    ),
)
_VISION: Final[Mapping[str, Any]] = {
    "depth": 32,
    "hidden_size": 3584,
    "hidden_act": "silu",
    "patch_size": 14,
}
_TEXT: Final[Mapping[str, Any]] = {"rope_theta": 1e6, "bos_token_id": 151643, "eos_token_id": 151645}


@dataclass(frozen=True)
class Config(QwenVlConfig):
    """A Qwen2.5-VL checkpoint's configuration."""

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        given = Reader(config, "config").section_of("vision_config", {})
        reader = Reader({**_VISION, **given}, "vision_config")
        cell = reader.integer("patch_size") * reader.integer("spatial_merge_size", 2)
        size = reader.integer("window_size", 112)
        if size < cell:
            raise reader.refused("window_size", size, f"at least one cell ({cell} pixels)")
        vision = QwenVisionConfig.read(
            reader.section,
            width_key="hidden_size",
            out_key="out_hidden_size",
            intermediate_size=reader.integer("intermediate_size", 3420),
            full_layers=layer_numbers(
                reader, "fullatt_block_indexes", (7, 15, 23, 31), reader.integer("depth")
            ),
            gated=True,
            window=size // cell,
        )
        fields = read_qwen_vl(config, text_section(config, "qwen2_5_vl_text", _TEXT), vision)
        return Config(**fields, tokens_per_second=reader.positive("tokens_per_second", 4))
