"""Standard operators only (opset 24): `TensorScatter` writes the cache, `Attention` reads it under a mask.

The mask is explicit. TensorRT's parser accepts `nonpad_kv_seqlen` and ignores it, and its causal mask counts
from the top left, which is wrong as soon as a cache is filled; a mask is right everywhere.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

OPSET: Final = 24


def check_sizes(num_heads: int, head_dim: int) -> None:
    """Any size will do."""


def rotary(x: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """Rotates `x [b, s, h * head_dim]` by the angles `[b, s, head_dim / 2]` (half-split convention)."""
    return torch.onnx.ops.rotary_embedding(x, cos, sin, num_heads=num_heads)


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    length: Tensor,
    cache_length: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `foveate.export.targets.onnxruntime.cached_attention`."""
    b, s, width = query.shape
    capacity, head_dim = past_key.shape[2], past_key.shape[3]

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
    slot = torch.arange(capacity)[None, None, :]
    row = torch.arange(s)[None, :, None] + cache_length[:, None, None]
    visible = (slot <= row) & (slot < (cache_length + length)[:, None, None])  # b s capacity
    mixed: Tensor = torch.onnx.ops.attention(
        heads(query, num_heads), present_key, present_value, visible[:, None], scale=head_dim**-0.5
    )[0]
    return mixed.transpose(1, 2).reshape(b, s, width), present_key, present_value  # b h s d -> b s (h d)
