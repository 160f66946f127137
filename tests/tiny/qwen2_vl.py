"""Tiny Qwen2-VL checkpoints, and what the Qwen-VL families share in theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from tiny.rows import BOTH, Row
from tiny.shared import draw_weights, make_tokenizer, text_options

SPECIALS: Final = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PIXELS: Final = {"shortest_edge": 4 * 28 * 28, "longest_edge": 24 * 28 * 28}


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and Qwen's special tokens."""
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    return make_tokenizer(SPECIALS, names, TEMPLATE)


def token_ids(tokens: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids that a Qwen-VL configuration wants."""
    return {
        "image_token_id": tokens.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokens.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokens.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokens.convert_tokens_to_ids("<|vision_end|>"),
    }


def text_sizes(tokens: PreTrainedTokenizerFast, **options: Any) -> dict[str, Any]:
    """A text model of 96 = 6 heads x 16 with three sections of unequal size."""
    sizes = text_options(tokens, bos_token_id=None)
    sizes.pop("head_dim")  # Qwen2 has none: the width is divided by the heads
    sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 3, 3]}
    return sizes | options


def save(
    path: Path,
    model: Any,
    tokens: PreTrainedTokenizerFast,
    *,
    dtype: torch.dtype = torch.float32,
    images: Any = None,
    video: Any = None,
) -> Path:
    """Draws the weights and writes the folder. `video` are settings of the video processor."""
    draw_weights(model)
    model.to(dtype).save_pretrained(path, max_shard_size="300KB")
    tokens.save_pretrained(path)
    (images or Qwen2VLImageProcessorPil(size=PIXELS)).save_pretrained(path)
    settings = {"size": PIXELS} | (video or {})
    (path / "video_preprocessor_config.json").write_text(json.dumps(settings))
    return path


def publish(path: Path) -> Path:
    """Rewrites `config.json` as the published checkpoints have it: the text model's keys at the top."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    for key in ("model_type", "layer_types", "dtype"):
        text.pop(key, None)
    rope = text.pop("rope_parameters")
    config["vision_config"].pop("rope_parameters", None)
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    file.write_text(json.dumps({**text, **config}))
    return path


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
        "depth": 3,
        "embed_dim": 48,
        "hidden_size": 96,
        "mlp_ratio": 2,
        "num_heads": 3,
        "patch_size": 14,
    }
    config = Qwen2VLConfig(
        vision_config=vision | (vision_options or {}),
        text_config=text_sizes(tokens, **(text_options or {})),
        **token_ids(tokens),
        **options,
    )
    save(path, Qwen2VLForConditionalGeneration(config).eval(), tokens, dtype=dtype)
    return publish(path) if flat else path


ROWS = (
    Row(
        "qwen2_vl: the main methods at both sites",
        ("saliency-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        family="qwen2_vl",
        cases=(),
        slow=True,
    ),
    Row(
        "qwen2_vl as published, tied head, bfloat16, by the prompt, three decoder segments",
        ("saliency-knee:score=prompt,min_keep=2", "text-relevance@1:ratio=0.7", "random@3:ratio=0.6"),
        family="qwen2_vl",
        checkpoint={
            "seed": 1,
            "flat": True,
            "dtype": torch.bfloat16,
            "tie_word_embeddings": True,
            "vision_options": {"hidden_act": "gelu", "depth": 2},
        },
        cases=("two images", "video", "text only"),
        slow=True,
    ),
)
