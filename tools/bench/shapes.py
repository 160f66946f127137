"""The shapes that the benchmark's random checkpoints have, as `config.json` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from foveate.tools.large_shapes import SHAPES

_LLAVA: Final = SHAPES["llava-1.5-7b"]
_ONEVISION: Final = SHAPES["llava-onevision-qwen2-0.5b"]

LLAVA_1B: Final[Mapping[str, Any]] = {
    **_LLAVA,
    "image_seq_length": 576,
    "tie_word_embeddings": False,
    "text_config": {
        **_LLAVA["text_config"],
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""CLIP ViT-L/14 at 336 px and a decoder of TinyLlama's sizes: 576 visual tokens, 1.41e9 weights."""

LLAVA_7B: Final[Mapping[str, Any]] = {
    **_LLAVA,
    "image_seq_length": 576,
    "tie_word_embeddings": False,
    "text_config": {**_LLAVA["text_config"], "tie_word_embeddings": False},
}
"""CLIP ViT-L/14 at 336 px and Llama's 7B, as LLaVA-1.5-7B: 576 visual tokens, 7.06e9 weights."""

SIGLIP_QWEN2: Final[Mapping[str, Any]] = {
    **_ONEVISION,
    "image_token_index": 32000,
    "video_token_index": 32001,
    "tie_word_embeddings": True,
    "text_config": {**_ONEVISION["text_config"], "tie_word_embeddings": True},
}
"""SigLIP so400m at 384 px and Qwen2-0.5B, put together as LLaVA-OneVision: 729 visual tokens a tile."""
