"""Tiny Idefics3 checkpoints: tiles of 6 x 6 patches, 3 x 3 or 2 x 2 tokens each. SmolVLM uses them, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    PreTrainedTokenizerFast,
)

from tiny.rows import BOTH, Row
from tiny.shared import TEXT_CONFIGS, draw_weights, make_tokenizer
from tiny.shared import text_options as sizes

IMAGE_SIZE, PATCH_SIZE = 44, 7  # two pixels are left over on each side
TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
SPECIALS = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<video>",
    "<global-img>",
    *TILES,
)
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def make(
    path: Path,
    *,
    text: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    longest_edge: int = 2 * IMAGE_SIZE,
    split: bool = True,
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    kind: type[Any] = Idefics3Config,
    images: type[Any] = Idefics3ImageProcessorPil,
    processor: str = "Idefics3Processor",
    **options: Any,
) -> Path:
    """Writes an Idefics3 checkpoint folder (weights, tokenizer, image processor) and returns it.

    `longest_edge` is what pictures are scaled to before they are cut, `split` whether they are cut at all.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(SPECIALS, {"image_token": "<image>"}, TEMPLATE)
    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    } | (vision_options or {})
    language = sizes(tokenizer) | (text_options or {})
    config = kind(
        vision_config=vision,
        text_config=TEXT_CONFIGS[text](**language).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **options,
    )
    factory: Any = AutoModelForImageTextToText
    model = factory.from_config(config).eval()
    draw_weights(model)
    model.to(dtype).save_pretrained(path, max_shard_size=shard_size)
    size = vision["image_size"]
    images(
        size={"longest_edge": longest_edge},
        max_image_size={"longest_edge": size},
        do_image_splitting=split,
    ).save_pretrained(path)
    tokens = (size // vision["patch_size"] // config.scale_factor) ** 2
    _save_texts(path, tokenizer, {"processor_class": processor, "image_seq_len": tokens})
    return path


def _save_texts(path: Path, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]) -> None:
    """SmolVLM's processor class cannot be made without torchvision and num2words, so none is saved."""
    tokenizer.save_pretrained(path)
    (path / "processor_config.json").write_text(json.dumps(settings))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    assert AutoConfig.from_pretrained(path).image_token_id == tokenizer.convert_tokens_to_ids("<image>")


ROWS = (
    Row(
        "idefics3, default: a grid of tiles with markers between them, pixel shuffle",
        ("saliency-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        family="idefics3",
        cases=(),
    ),
    Row(
        "idefics3 not split: 3 x 3 patches to a token, bfloat16, original positions",
        ("saliency-knee:score=prompt,min_keep=2", "text-relevance@1:ratio=0.6", "random@3:ratio=0.5"),
        positions="original",
        family="idefics3",
        checkpoint={
            "seed": 1,
            "split": False,
            "scale_factor": 3,
            "dtype": torch.bfloat16,
            "text_options": {"num_key_value_heads": 1},
        },
        slow=True,
    ),
    Row(
        "idefics3 with many tiles: chosen tile by tile, patches in their neighbours' position buckets",
        ("saliency-knee:spread=tile,min_keep=2", "text-relevance@2:query=last"),
        ("segmented",),
        family="idefics3",
        checkpoint={
            "seed": 2,
            "longest_edge": 150,
            "scale_factor": 5,
            # Of 25 x 25 patches, ten rows and columns read their neighbour's position.
            "vision_options": {"image_size": 50, "patch_size": 2, "num_hidden_layers": 3},
            "text_options": {"max_position_embeddings": 2048},
        },
        slow=True,
    ),
)
