"""Tiny LLaVA-NeXT checkpoints: CLIP on tiles of 5 x 5 patches, up to four of them to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)

from tiny.rows import BOTH, Row
from tiny.shared import CHAT_TEMPLATE, IMAGE_TOKEN, TEXT_CONFIGS, draw_weights, make_tokenizer
from tiny.shared import text_options as sizes

IMAGE_SIZE, PATCH_SIZE = 70, 14
CANVASES = [[70, 140], [140, 70], [140, 140], [210, 70], [70, 210]]


def make(
    path: Path,
    *,
    text: str = "mistral",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    canvases: list[list[int]] | None = None,
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a LLaVA-NeXT checkpoint folder (weights, tokenizer, image processor) and returns it."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    language = sizes(tokenizer, max_position_embeddings=1024)
    if text == "mistral":
        language["sliding_window"] = None
    if text == "qwen2":
        language.pop("head_dim")  # Qwen2 has none: the width is divided by the heads
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**(vision | (vision_options or {}))),
        text_config=TEXT_CONFIGS[text](**(language | (text_options or {}))),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_grid_pinpoints=canvases or CANVASES,
        **options,
    )
    model = LlavaNextForConditionalGeneration(config).eval()
    draw_weights(model)
    model.to(dtype).save_pretrained(path)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_grid_pinpoints=canvases or CANVASES,
    )
    LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)
    return path


ROWS = (
    Row(
        "llava_next: mistral, tiles, the main method at both sites",
        ("cls-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        family="llava_next",
        slow=True,
    ),
    Row(
        "llava_next tiles by tile: llama, two feature layers, original positions",
        ("cls-knee:score=cls_mean,spread=tile,min_keep=2", "text-relevance@1:ratio=0.5"),
        positions="original",
        checkpoint={
            "text": "llama",
            "seed": 1,
            "vision_feature_layer": [-3, -2],
            "text_options": {"num_key_value_heads": 3},
        },
        family="llava_next",
        slow=True,
    ),
    Row(
        "llava_next asked: qwen2, scores by the prompt",
        ("saliency-knee:score=prompt,knee=iqr,min_keep=3",),
        checkpoint={"text": "qwen2", "seed": 2},
        family="llava_next",
        slow=True,
    ),
)
