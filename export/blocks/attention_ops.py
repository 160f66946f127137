"""Rotation and masked attention in standard operators: what targets share."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

# `TensorScatter` came with it.
OPSET: Final = 24


def rotary(x: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """Rotates `x [b, s, h * head_dim]` by the angles `[b, s, head_dim / 2]` (half-split convention)."""
    return torch.onnx.ops.rotary_embedding(x, cos, sin, num_heads=num_heads)


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    cache_length: Tensor,
    *,
    visible: Tensor,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`TensorScatter` writes the caches, `Attention` reads them under `visible`, bool `[b, s, capacity]`.

    Arguments and results as `foveate.export.targets.onnxruntime.cached_attention`. A mask is right
    everywhere; TensorRT's parser ignores `nonpad_kv_seqlen`, and its causal mask counts from the top left.
    """
    b, s, width = query.shape
    head_dim = past_key.shape[3]

    def heads(x: Tensor, count: int) -> Tensor:
        return x.reshape(b, s, count, head_dim).transpose(1, 2)  # b s (h d) -> b h s d

    def scatter(cache: Tensor, update: Tensor) -> Tensor:
        written: Tensor = torch.onnx.ops.symbolic(
            "TensorScatter",
            (cache, update, cache_length),
            {"axis": -2, "mode": "linear"},
            dtype=cache.dtype,
            shape=tuple(cache.shape),
            version=OPSET,
        )
        return written

    present_key = scatter(past_key, heads(key, num_kv_heads))
    present_value = scatter(past_value, heads(value, num_kv_heads))
    mixed: Tensor = torch.onnx.ops.attention(
        heads(query, num_heads), present_key, present_value, visible[:, None], scale=scale
    )[0]
    return mixed.transpose(1, 2).reshape(b, s, width), present_key, present_value  # b h s d -> b s (h d)
