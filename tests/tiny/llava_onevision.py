"""Tiny LLaVA-OneVision checkpoints: SigLIP on tiles of 5 x 5 patches, up to nine of them to a picture.

A tile is three pixels wider than its patches, and more than two tiles' patches are resampled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    SiglipVisionConfig,
)

from tiny.rows import BOTH, Row
from tiny.shared import CHAT_TEMPLATE, IMAGE_TOKEN, TEXT_CONFIGS, draw_weights, make_tokenizer
from tiny.shared import text_options as sizes

IMAGE_SIZE, PATCH_SIZE = 38, 7
CANVASES = [[high, wide] for high in (38, 76, 114) for wide in (38, 76, 114)]
VIDEO_TOKEN = "<video>"
ASPECT = "anyres_max_2"
_TEMPLATE = CHAT_TEMPLATE.replace(
    "{% else %}{{ part['text']",
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}{% else %}{{ part['text']",
)


def make(
    path: Path,
    *,
    text: str = "qwen2",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    canvases: list[list[int]] | None = None,
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a LLaVA-OneVision checkpoint folder (weights, tokenizer, processor) and returns it."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(
        (IMAGE_TOKEN, VIDEO_TOKEN), {"image_token": IMAGE_TOKEN, "video_token": VIDEO_TOKEN}, _TEMPLATE
    )
    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }
    language = sizes(tokenizer, max_position_embeddings=1024)
    if text == "qwen2":
        language.pop("head_dim")  # Qwen2 has none: the width is divided by the heads
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**(vision | (vision_options or {}))),
        text_config=TEXT_CONFIGS[text](**(language | (text_options or {}))),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        image_grid_pinpoints=canvases or CANVASES,
        vision_aspect_ratio=ASPECT,
        **options,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    draw_weights(model)
    model.to(dtype).save_pretrained(path)
    tokenizer.save_pretrained(path)
    images = LlavaOnevisionImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_grid_pinpoints=canvases or CANVASES
    )
    images.save_pretrained(path)
    _save_processor(path)
    return path


def _save_processor(path: Path) -> None:
    """By hand: transformers' class wants a video processor, which wants torchvision."""
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": ASPECT,
    }
    (path / "processor_config.json").write_text(json.dumps(settings))
    (path / "chat_template.jinja").write_text(_TEMPLATE)


ROWS = (
    Row(
        "llava_onevision: qwen2, crops, resampling, videos, the main method at both sites",
        ("saliency-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        checkpoint={"text_options": {"num_hidden_layers": 3}},
        cases=("image in the middle", "two images", "video", "image and video", "text only"),
        family="llava_onevision",
    ),
    Row(
        "llava_onevision pooling head: tile by tile, two feature layers, original positions",
        ("saliency-knee:score=pooled,spread=tile,min_keep=2", "text-relevance@1:ratio=0.5"),
        positions="original",
        checkpoint={
            "seed": 1,
            "vision_feature_layer": [-3, -2],
            "vision_options": {"vision_use_head": True},
            "text_options": {"num_key_value_heads": 3},
        },
        cases=("image in the middle", "two images", "video"),
        family="llava_onevision",
        slow=True,
    ),
    Row(
        "llava_onevision asked: tied head, scores by the prompt",
        ("saliency-knee:score=prompt,min_keep=3",),
        ("segmented",),
        checkpoint={"seed": 2, "tie_word_embeddings": True},
        family="llava_onevision",
        slow=True,
    ),
)
