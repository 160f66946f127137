"""Tiny ViP-LLaVA checkpoints: three encoder layers of five are read, the deepest not last."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

from tiny.llava import IMAGE_SIZE, PATCH_SIZE, save_processor
from tiny.rows import BOTH, Row
from tiny.shared import IMAGE_TOKEN, TEXT_CONFIGS, draw_weights, edit_config, make_tokenizer
from tiny.shared import text_options as sizes


def make(
    path: Path,
    *,
    text: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    early: bool = False,
    text_options: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a ViP-LLaVA checkpoint folder and returns it; `early`: with the names of its first release."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    language = sizes(tokenizer)
    if text == "qwen2":
        language.pop("head_dim")  # Qwen2 has none: the width is divided by the heads
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=5,
            num_attention_heads=3,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        text_config=TEXT_CONFIGS[text](**(language | (text_options or {}))),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        **({"vision_feature_layer": [-4, -2, 1]} | options),
    )
    model = VipLlavaForConditionalGeneration(config).eval()
    draw_weights(model)
    model.to(dtype).save_pretrained(path)
    save_processor(path, tokenizer, "default")
    if early:
        use_early_names(path)
    return path


def use_early_names(path: Path) -> None:
    """Rewrites a checkpoint with the names that published ones have, for weights and feature layers."""
    file = path / "model.safetensors"
    save_file({early_name(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    layers = json.loads((path / "config.json").read_text())["vision_feature_layer"]
    edit_config(path, vision_feature_layer=None, vision_feature_layers=layers)


def early_name(name: str) -> str:
    """How transformers 4.36 called a tensor."""
    name = re.sub(r"^model\.", "", name)
    name = re.sub(r"^language_model\.(?!model\.|lm_head\.)", "language_model.model.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


ROWS = (
    Row(
        "vipllava: llama, three feature layers, the main method at both sites",
        ("cls-knee:min_keep=3", "text-relevance@2"),
        BOTH,
        family="vipllava",
        slow=True,
    ),
    Row(
        "vipllava of the first release: bfloat16, cosine to CLS, original positions",
        ("cls-knee:score=cosine,knee=iqr,min_keep=3,max_keep=20", "text-relevance@1:ratio=0.5"),
        positions="original",
        checkpoint={"early": True, "dtype": torch.bfloat16, "seed": 1},
        family="vipllava",
        slow=True,
    ),
    Row(
        "vipllava with one layer: mistral, tied head, scores by attention received",
        ("saliency-knee:score=received,min_keep=3",),
        checkpoint={
            "text": "mistral",
            "seed": 4,
            "vision_feature_layer": -1,
            "projector_hidden_act": "gelu_pytorch_tanh",
            "projector_layernorm_eps": 0.1,
            "tie_word_embeddings": True,
            "text_options": {"num_key_value_heads": 3},
        },
        family="vipllava",
        slow=True,
    ),
    Row(
        "vipllava asked: qwen2, scores by the prompt",
        ("saliency-knee:score=prompt,knee=iqr,min_keep=3", "text-relevance@2:query=last"),
        ("segmented",),
        checkpoint={"text": "qwen2", "seed": 3, "vision_feature_layer": [0, 3, 3]},
        family="vipllava",
        slow=True,
    ),
)
