"""Tiny SmolVLM checkpoints: Idefics3's under another name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import SmolVLMConfig, SmolVLMImageProcessorPil

from tiny import idefics3
from tiny.rows import BOTH, Row

IMAGE_SIZE, PATCH_SIZE = idefics3.IMAGE_SIZE, idefics3.PATCH_SIZE


def make(path: Path, **options: Any) -> Path:
    """Writes a SmolVLM checkpoint folder (weights, tokenizer, image processor) and returns it."""
    return idefics3.make(
        path, kind=SmolVLMConfig, images=SmolVLMImageProcessorPil, processor="SmolVLMProcessor", **options
    )


ROWS = (
    Row(
        "smolvlm, default: a grid of tiles with markers between them, tied head",
        ("saliency-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        family="smolvlm",
        checkpoint={
            "tie_word_embeddings": True,
            "vision_options": {"num_attention_heads": 4},
            "text_options": {"hidden_size": 108, "num_attention_heads": 9, "num_key_value_heads": 3},
        },
        # transformers' processor takes images or videos, not both: the ones overwrite the others.
        cases=("image in the middle", "two images", "three images", "video", "text only"),
        slow=True,
    ),
)
