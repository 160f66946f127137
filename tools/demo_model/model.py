"""Build the LLaVA, compute its visual features, and turn images into pixels the way its processor does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from foveate.tools.demo_model.recipe import IMAGE_MEAN, IMAGE_STD, ModelShape
from foveate.tools.demo_model.scenes import CELL, GRID, SIZE, Scene


def build_model(shape: ModelShape, tokens: dict[str, int], vocabulary: int) -> LlavaForConditionalGeneration:
    """A freshly initialised LLaVA; `tokens` holds the ids of `bos`, `eos`, `pad` and `image`."""
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_mlp,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=SIZE,
        patch_size=CELL,
        projection_dim=shape.vision_width,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.text_width,
        intermediate_size=shape.text_mlp,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        num_key_value_heads=shape.text_kv_heads,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=1e-5,
        initializer_range=shape.text_width**-0.5,
        bos_token_id=tokens["bos"],
        eos_token_id=tokens["eos"],
        pad_token_id=tokens["pad"],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokens["image"],
        image_seq_length=GRID * GRID,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Normalised pixels, float32 `[b, 3, SIZE, SIZE]`."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD).view(1, 3, 1, 1)
    return (images - mean) / std


def vision_states(tower: torch.nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the encoder. Returns the input of its last layer `[b, 1 + n, c]` and the pooled CLS state `[b, c]`.

    The first is `hidden_states[-2]`, where LLaVA takes its features; row 0 is the CLS token.
    """
    hidden = tower.pre_layrnorm(tower.embeddings(images))
    layers = tower.encoder.layers
    for layer in layers[:-1]:
        hidden = layer(hidden, None)
    last = layers[-1](hidden, None)
    return hidden, tower.post_layernorm(last[:, 0])


def cls_scores(tower: torch.nn.Module, states: Tensor) -> dict[str, Tensor]:
    """CLS-to-patch scores `[b, n]` from the last layer's queries and keys; `states` is `[b, 1 + n, c]`.

    `cls_full` runs the dot product over the concatenated heads (scale `c ** -0.5`); `cls_mean` is the
    attention the layer really uses, averaged over its heads.
    """
    layer = tower.encoder.layers[-1]
    normed = layer.layer_norm1(states)
    heads = layer.self_attn.num_heads
    query = layer.self_attn.q_proj(normed[:, :1])
    key = layer.self_attn.k_proj(normed)
    full = (query @ key.transpose(1, 2)).squeeze(1) * query.shape[-1] ** -0.5
    query = query.unflatten(-1, (heads, -1)).squeeze(1)  # [b, h, d]
    key = key.unflatten(-1, (heads, -1))  # [b, 1 + n, h, d]
    each = torch.einsum("bhd,bnhd->bhn", query, key) * query.shape[-1] ** -0.5
    return {
        "cls_full": full.float().softmax(-1)[:, 1:],
        "cls_mean": each.float().softmax(-1).mean(1)[:, 1:],
    }
