"""SmolVLM and SmolVLM2 (arXiv 2504.05299): Idefics3 with smaller parts; SmolVLM2 also takes videos."""

from __future__ import annotations

from typing import Final

from foveate.export.families import Facts
from foveate.export.families.idefics3 import (
    Config,
    Connector,
    Vision,
    candidates,
    constants,
    encoder_shape,
    is_unused,
    rename_weight,
    runtime_facts,
    tied_weights,
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
    "tied_weights",
    "vision_inputs",
]

FACTS: Final = Facts(
    title="SmolVLM",
    checkpoints=(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    text_models=("llama", "mistral", "qwen2"),
    scores=("received", "cosine", "prompt"),
    default_plan=("saliency-knee", "text-relevance@2"),
    visual_tokens="64 per tile of 512 px, or 81 per tile of 384 px: a grid of tiles, and the whole picture",
    video="frames: one tile each, introduced by their time",
    differs=(
        "image processors whose max_image_size is not the encoder's image_size are refused",
        "video frames are scaled by Pillow with the image processor's settings, not by torchvision",
        "a video's duration is the time of its last frame",
    ),
)
