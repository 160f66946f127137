"""Tiny seeded checkpoints, made with transformers' own classes: the input and the oracle of most tests.

Shapes are awkward on purpose (odd group sizes, unequal widths, a 5 x 5 grid): a swapped axis cannot pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

IMAGE_SIZE, PATCH_SIZE = 70, 14
VOCABULARY = 272  # 256 bytes, the special tokens, and rows that no token uses
IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' if message['role'] == 'assistant' else '' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

TEXT_CONFIGS: dict[str, type[Any]] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per byte, plus bos, eos, pad and the image placeholder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>", IMAGE_TOKEN]
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def make_llava(
    path: Path,
    *,
    text: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    vision_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a LLaVA checkpoint folder (weights, tokenizer, image processor) and returns it.

    The weights are drawn wide, so that attention is peaked and greedy tokens are far from ties.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<s>", "</s>", "<pad>", IMAGE_TOKEN)}
    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    language = {
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,  # not hidden_size / heads
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
        "pad_token_id": ids["<pad>"],
    }
    if text == "qwen2":
        language.pop("head_dim")  # Qwen2 has none: the width is divided by the heads
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**(vision | (vision_options or {}))),
        text_config=TEXT_CONFIGS[text](**(language | (text_options or {}))),
        image_token_index=ids[IMAGE_TOKEN],
        **options,
    )
    model = LlavaForConditionalGeneration(config).eval()
    _draw_weights(model)
    model.to(dtype).save_pretrained(path, max_shard_size=shard_size)
    _save_processor(path, tokenizer)
    return path


def _draw_weights(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                fan = parameter[0].numel()
                parameter.normal_(0.0, (2.0 if "q_proj" in name or "k_proj" in name else 1.2) / fan**0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            else:
                parameter.normal_(1.0, 0.1)


def _save_processor(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)


def make_image(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    """Returns a picture (width, height) of coloured blobs: smooth, so that resizing does not level it out."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    picture = np.full((height, width, 3), 120.0)
    for _ in range(6):
        cx, cy, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.05, 0.3) * min(size)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2))
        picture += blob[:, :, None] * rng.uniform(-160, 160, size=3)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def edit_config(path: Path, **changes: Any) -> None:
    """Overwrites top-level keys of a checkpoint's `config.json`; None removes a key."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    file.write_text(json.dumps(config))
