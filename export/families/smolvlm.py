"""SmolVLM2 (arXiv 2504.05299): Idefics3 with smaller parts, and videos. The first SmolVLM is `idefics3`."""

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
    title="SmolVLM2",
    checkpoints=(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    text_models=("llama",),
    scores=("received", "prompt"),
    default_plan=("saliency-knee", "text-relevance@2"),
    visual_tokens="64 per tile of 512 px, 81 of 384 px: a grid of up to 4 x 4 tiles, and the whole picture",
    video="frames: one tile each, introduced by their time",
    differs=(
        "image processors whose max_image_size is not the encoder's image_size are refused",
        "video frames are scaled by Pillow with the image processor's settings, not by torchvision",
        "a video's duration is the time of its last frame",
        "prompts with images and videos together are read, and several videos of unequal length; "
        "transformers refuses them, so these answers have no reference",
    ),
)
