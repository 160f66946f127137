"""Rotation and attention in standard operators: what encoders and targets share."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

# `TensorScatter` came with it.
OPSET: Final = 24


def rotary(x: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """Rotates `x [b, s, h * head_dim]` by the angles `[b, s, head_dim / 2]` (half-split convention)."""
    return torch.onnx.ops.rotary_embedding(x, cos, sin, num_heads=num_heads)


def full_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None = None
) -> Tensor:
    """An encoder's attention: `[b, n, h * e]` three times to the mixed values `[b, n, h * e]`.

    `mask` bool, of a shape that fits `[b, h, n, n]`, says which keys a query sees; None is all of them.
    Targets rewrite it (`lower`), so it stays torch's own operator here.
    """

    def heads(x: Tensor) -> Tensor:
        b, n, width = x.shape
        return x.reshape(b, n, num_heads, width // num_heads).transpose(1, 2)  # b n (h e) -> b h n e

    mixed = functional.scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=mask)
    return mixed.transpose(1, 2).reshape(query.shape)  # b h n e -> b n (h e)


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

    Arguments and results as `foveate.export.targets.onnxruntime.cached_attention`; there may be fewer queries
    than keys. A mask is right
    everywhere; TensorRT's parser ignores `nonpad_kv_seqlen`, and its causal mask counts from the top left.
    """
    b, s, width = query.shape
    head_dim = past_key.shape[3]

    def heads(x: Tensor, count: int) -> Tensor:
        return x.reshape(b, x.shape[1], count, head_dim).transpose(1, 2)  # b s (h d) -> b h s d

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
