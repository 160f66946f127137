"""Tiny Qwen2.5-VL checkpoints: two layers with windows of 2 x 2 cells, two without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tiny.qwen2_vl import publish, save, text_sizes, token_ids, tokenizer
from tiny.rows import BOTH, Row


def make(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    flat: bool = False,
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a checkpoint folder and returns it. `flat`: as published, the text model's keys at the top."""
    torch.manual_seed(seed)
    tokens = tokenizer()
    vision = {
        "depth": 4,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 3,
        "patch_size": 14,
        "window_size": 56,
        "out_hidden_size": 96,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    }
    config = Qwen2_5_VLConfig(
        vision_config=vision | (vision_options or {}),
        text_config=text_sizes(tokens, **(text_options or {})),
        **token_ids(tokens),
        **options,
    )
    save(path, Qwen2_5_VLForConditionalGeneration(config).eval(), tokens, dtype=dtype)
    return publish(path) if flat else path


ROWS = (
    Row(
        "qwen2_5_vl: the main methods at both sites, pictures of any shape",
        ("saliency-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        family="qwen2_5_vl",
        cases=(),
    ),
    Row(
        "qwen2_5_vl as published, tied head, bfloat16, wider windows, frame by frame, an earlier layer",
        ("saliency-knee:layer=0,spread=tile,min_keep=2", "text-relevance@1:rope_free=true"),
        ("segmented",),
        family="qwen2_5_vl",
        checkpoint={
            "seed": 1,
            "flat": True,
            "dtype": torch.bfloat16,
            "tie_word_embeddings": True,
            "vision_options": {"window_size": 84, "fullatt_block_indexes": [2, 0], "depth": 3},
            "text_options": {"num_key_value_heads": 1},
        },
        cases=("three images", "image and video"),
        slow=True,
    ),
    Row(
        "qwen2_5_vl unpruned, a slow film: its time reaches further than the text behind it",
        ("none",),
        family="qwen2_5_vl",
        checkpoint={"seed": 4, "vision_options": {"tokens_per_second": 150}},
        cases=("video", "image and video"),
        slow=True,
    ),
)
