"""Tiny Qwen3-VL checkpoints: a 6 x 6 table of positions, two levels of DeepStack."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tiny.qwen2_vl import save, text_sizes, token_ids, tokenizer
from tiny.rows import BOTH, Row

PIXELS: Final = {"shortest_edge": 4 * 32 * 32, "longest_edge": 24 * 32 * 32}
# A video's limits are for all its frames together.
VIDEO: Final = {"shortest_edge": 8 * 32 * 32, "longest_edge": 60 * 32 * 32}


def make(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a checkpoint folder and returns it."""
    torch.manual_seed(seed)
    tokens = tokenizer()
    vision = {
        "depth": 4,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 3,
        "patch_size": 16,
        "out_hidden_size": 96,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2],
    }
    language = text_sizes(tokens, head_dim=24)
    language["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 5000.0,
        "mrope_section": [6, 3, 3],
        "mrope_interleaved": True,
    }
    config = Qwen3VLConfig(
        vision_config=vision | (vision_options or {}),
        text_config=language | (text_options or {}),
        **token_ids(tokens),
        **options,
    )
    images = Qwen2VLImageProcessorPil(
        size=PIXELS, patch_size=16, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    return save(path, model, tokens, dtype=dtype, images=images, video={"size": VIDEO})


ROWS = (
    Row(
        "qwen3_vl: the main methods at both sites, cuts inside and behind DeepStack's layers",
        ("saliency-knee:min_keep=3", "text-relevance@1:ratio=0.7", "text-relevance@3"),
        BOTH,
        family="qwen3_vl",
        cases=(),
    ),
    Row(
        "qwen3_vl by the prompt, tied head, float16, three levels, frame by frame",
        ("saliency-knee:score=prompt,spread=tile,min_keep=2", "text-relevance@2:query=all"),
        family="qwen3_vl",
        checkpoint={
            "seed": 1,
            "dtype": torch.float16,
            "tie_word_embeddings": True,
            "vision_options": {"deepstack_visual_indexes": [0, 1, 3], "num_position_embeddings": 25},
            "text_options": {"num_key_value_heads": 1, "attention_bias": True},
        },
        cases=("two images", "video"),
        slow=True,
    ),
)
