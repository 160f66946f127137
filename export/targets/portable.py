"""Standard operators only (opset 24): `TensorScatter` writes the cache, `Attention` reads it under a mask.

The mask is explicit. TensorRT's parser accepts `nonpad_kv_seqlen` and ignores it, and its causal mask counts
from the top left, which is wrong as soon as a cache is filled; a mask is right everywhere.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
import torch
from torch import Tensor

from foveate.export.blocks.attention_ops import OPSET, masked_attention, rotary

__all__ = ["HOST_LENGTHS", "OPSET", "cached_attention", "check_sizes", "lower", "rotary"]

HOST_LENGTHS: Final = False


def check_sizes(num_heads: int, head_dim: int) -> None:
    """Any size will do."""


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
    scale: float,
    visible: Tensor | None = None,
    longest: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as `foveate.export.targets.onnxruntime.cached_attention`; nobody asks for `longest`."""
    if visible is None:
        slot = torch.arange(past_key.shape[2])[None, None, :]
        row = torch.arange(query.shape[1])[None, :, None] + cache_length[:, None, None]
        visible = (slot <= row) & (slot < (cache_length + length)[:, None, None])  # b s capacity
    return masked_attention(
        query,
        key,
        value,
        past_key,
        past_value,
        cache_length,
        visible=visible,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        scale=scale,
    )


def lower(model: ir.Model) -> None:
    """Standard operators stay as they are."""
