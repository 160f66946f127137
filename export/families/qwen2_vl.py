"""Qwen2-VL (arXiv 2409.12191): encoder without windows, 2 x 2 merger, Qwen2 with three-axis positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from foveate.export.blocks.qwen_vision import QwenVisionConfig
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
    title="Qwen2-VL",
    checkpoints=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-72B-Instruct"),
    text_models=("qwen2_vl_text",),
    scores=("received", "prompt"),
    default_plan=("saliency-knee", "text-relevance@2"),
    visual_tokens="one per 28 x 28 pixels of the picture as the image processor scales it",
    video="frames in pairs, one step of time each in the positions",
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
    "embed_dim": 1280,
    "hidden_act": "quick_gelu",
    "patch_size": 14,
}
_TEXT: Final[Mapping[str, Any]] = {"rope_theta": 1e6, "bos_token_id": 151643, "eos_token_id": 151645}


@dataclass(frozen=True)
class Config(QwenVlConfig):
    """A Qwen2-VL checkpoint's configuration."""

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        given = Reader(config, "config").section_of("vision_config", {})
        reader = Reader({**_VISION, **given}, "vision_config")
        vision = QwenVisionConfig.read(
            reader.section,
            width_key="embed_dim",
            out_key="hidden_size",  # of the merger; the encoder's own is embed_dim
            intermediate_size=reader.integer("embed_dim") * reader.integer("mlp_ratio", 4),
            full_layers=tuple(range(reader.integer("depth"))),
        )
        text_json = text_section(config, "qwen2_vl_text", _TEXT)
        fields = read_qwen_vl(config, text_json, vision, out_key="hidden_size")
        return Config(**fields, tokens_per_second=None)
