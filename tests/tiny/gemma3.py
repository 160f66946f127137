"""Tiny Gemma 3 checkpoints: 10 x 10 patches pooled to 5 x 5 tokens, windows shorter than an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from tiny.rows import BOTH, Row
from tiny.shared import draw_weights, make_tokenizer
from tiny.shared import text_options as sizes

IMAGE_SIZE, PATCH_SIZE, TOKENS = 70, 7, 25
OPEN, SOFT, CLOSE = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + {'assistant': 'model'}.get(message['role'], message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The window is shorter than an image, and the layer before the cut of the default plan has one.
KINDS = ("sliding_attention", "sliding_attention", "full_attention", "sliding_attention")
WINDOW = 18


def make(
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a Gemma 3 checkpoint folder (weights, tokenizer, image processor) and returns it."""
    torch.manual_seed(seed)
    names = {"boi_token": OPEN, "image_token": SOFT, "eoi_token": CLOSE}
    tokenizer = make_tokenizer((OPEN, CLOSE, "<start_of_turn>", "<end_of_turn>", SOFT), names, TEMPLATE)
    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }
    language = sizes(
        tokenizer,
        query_pre_attn_scalar=20,  # not head_dim
        sliding_window=WINDOW,
        layer_types=list(KINDS),
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
    )
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (OPEN, SOFT, CLOSE, "<end_of_turn>")}
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**(vision | (vision_options or {}))),
        text_config=Gemma3TextConfig(**(language | (text_options or {}))),
        mm_tokens_per_image=TOKENS,
        boi_token_index=ids[OPEN],
        eoi_token_index=ids[CLOSE],
        image_token_index=ids[SOFT],
        eos_token_id=[tokenizer.eos_token_id, ids["<end_of_turn>"]],
        **options,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    draw_weights(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "vision_tower" not in name:
                parameter.sub_(1.0)  # these norms count from 1
        # Embeddings are scaled up and the head is tied: else each token's best successor would be itself.
        model.model.language_model.embed_tokens.weight.mul_(0.2)
    model.to(dtype).save_pretrained(path, max_shard_size=shard_size)
    _save_processor(path, tokenizer)
    return path


def _save_processor(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    images = Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    Gemma3Processor(images, tokenizer, chat_template=TEMPLATE, image_seq_length=TOKENS).save_pretrained(path)


ROWS = (
    Row(
        "gemma3: windows, images in both directions, pooled patches",
        ("saliency-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        family="gemma3",
        cases=(),
    ),
    Row(
        "gemma3 with a pooling head, bfloat16, original positions, two decoder cuts",
        (
            "saliency-knee:score=pooled,min_keep=2",
            "text-relevance@1:ratio=0.6",
            "text-relevance@3:query=last",
        ),
        positions="original",
        family="gemma3",
        checkpoint={
            "seed": 1,
            "dtype": torch.bfloat16,
            "vision_options": {"vision_use_head": True, "num_hidden_layers": 3},
            "text_options": {"num_key_value_heads": 1, "attention_bias": True, "sliding_window": 40},
        },
        slow=True,
    ),
    Row(
        "gemma3 by the prompt, all layers full, no stretching",
        ("saliency-knee:score=prompt,min_keep=2", "random@2:ratio=0.5"),
        ("segmented",),
        family="gemma3",
        checkpoint={
            "seed": 2,
            "vision_options": {"num_hidden_layers": 3},
            "text_options": {"layer_types": ["full_attention"] * 4, "rope_parameters": None},
        },
        slow=True,
    ),
)
