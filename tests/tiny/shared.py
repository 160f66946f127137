"""What the tiny checkpoints of all families share: a byte-level tokenizer, weights, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

VOCABULARY = 272  # 256 bytes, the special tokens, and rows that no token uses
IMAGE_TOKEN = "<image>"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
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


TEXT_CONFIGS: dict[str, type[Any]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


def make_tokenizer(
    specials: Sequence[str] = (IMAGE_TOKEN,),
    names: Mapping[str, str] | None = None,
    template: str = CHAT_TEMPLATE,
) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per byte, then bos, eos, pad and the family's `specials`.

    `names` are the attributes by which transformers' processors ask for them ({"image_token": "<image>"}).
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    every = [BOS, EOS, PAD, *specials]
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in every])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=template,
        extra_special_tokens=dict(names or {"image_token": IMAGE_TOKEN}),
    )


def text_options(tokenizer: PreTrainedTokenizerFast, **options: Any) -> dict[str, Any]:
    """Odd sizes of a text model: 4 layers, 6 heads in 2 groups, heads wider than d / heads."""
    sizes: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,  # not hidden_size / heads
        "vocab_size": max(VOCABULARY, len(tokenizer) + 5),
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return sizes | options


def draw_weights(model: torch.nn.Module) -> None:
    """Draws the weights wide, so that attention is peaked and greedy tokens are far from ties."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                fan = parameter[0].numel()
                parameter.normal_(0.0, (2.0 if "q_proj" in name or "k_proj" in name else 1.2) / fan**0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            else:
                parameter.normal_(1.0, 0.1)


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
