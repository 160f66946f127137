"""Tiny InternVL checkpoints: tiles of 4 x 4 patches and CLS, 2 x 2 tokens each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
)

from tiny.rows import BOTH, Row
from tiny.shared import TEXT_CONFIGS, draw_weights, make_tokenizer
from tiny.shared import text_options as sizes

IMAGE_SIZE, PATCH_SIZE = 56, 14
SPECIALS = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make(
    path: Path,
    *,
    text: str = "qwen2",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    max_tiles: int = 6,
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes an InternVL checkpoint folder (weights, tokenizer, image processor) and returns it."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(SPECIALS, NAMES, TEMPLATE)
    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "patch_size": [PATCH_SIZE, PATCH_SIZE],
        "attention_bias": True,
    } | (vision_options or {})
    language = sizes(tokenizer)
    if text == "qwen2":
        language.pop("head_dim")  # Qwen2 has none: the width is divided by the heads
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision),
        text_config=TEXT_CONFIGS[text](**(language | (text_options or {}))),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        **({"tie_word_embeddings": False} | options),
    )
    model = InternVLForConditionalGeneration(config).eval()
    draw_weights(model)
    with torch.no_grad():
        for name, parameter in model.model.vision_tower.named_parameters():
            if name in ("embeddings.cls_token", "embeddings.position_embeddings"):
                parameter.normal_(0.0, 0.5)
            elif "lambda" in name:
                parameter.normal_(0.4, 0.1)
    model.to(dtype).save_pretrained(path, max_shard_size=shard_size)
    tokenizer.save_pretrained(path)
    size = vision["image_size"][0]
    GotOcr2ImageProcessorPil(
        size={"height": size, "width": size}, min_patches=1, max_patches=max_tiles
    ).save_pretrained(path)
    # transformers' processor class cannot be made without torchvision: it wants a video processor.
    grid = int(size // vision["patch_size"][0] * config.downsample_ratio)
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": grid**2}
    (path / "processor_config.json").write_text(json.dumps(settings))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


ROWS = (
    Row(
        "internvl, default: tiles and a thumbnail, pixel shuffle",
        ("cls-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        family="internvl",
        cases=(),
    ),
    Row(
        "internvl over qwen3: normed queries and keys, RMS norms, bfloat16, original positions, by tile",
        (
            "cls-knee:score=cls_mean,spread=tile,min_keep=2",
            "text-relevance@1:ratio=0.6",
            "random@3:ratio=0.5",
        ),
        positions="original",
        family="internvl",
        checkpoint={
            "text": "qwen3",
            "seed": 1,
            "dtype": torch.bfloat16,
            "vision_options": {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False},
            "text_options": {"num_key_value_heads": 3},
        },
        slow=True,
    ),
    Row(
        "internvl over llama: an earlier layer, one tile, tied head",
        ("saliency-knee:min_keep=2", "text-relevance@2:query=last"),
        ("segmented",),
        family="internvl",
        checkpoint={
            "text": "llama",
            "seed": 2,
            "max_tiles": 1,
            "vision_feature_layer": -2,
            "tie_word_embeddings": True,
            "text_options": {"tie_word_embeddings": True},
        },
        slow=True,
    ),
    Row(
        "internvl by the prompt: a final norm, 4 x 4 patches to a token, no position table",
        ("saliency-knee:score=prompt,min_keep=2", "text-relevance@2"),
        ("segmented",),
        family="internvl",
        checkpoint={
            "seed": 3,
            "downsample_ratio": 0.25,
            "vision_options": {
                "use_mean_pooling": False,
                "use_absolute_position_embeddings": False,
                "image_size": [112, 112],
            },
        },
        slow=True,
    ),
)
