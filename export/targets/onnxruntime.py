"""ONNX Runtime on CPU or CUDA: attention as `com.microsoft::GroupQueryAttention`, caches written in place.

RoPE stays outside the operator. With `do_rotary=1` its first-prompt path counts positions from
`position_ids[0]` and ignores the rest, so a pruned prompt would be silently wrong
(tests/export/test_targets.py has positions with holes).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from foveate.runtime.errors import CheckpointError

OPSET: Final = 23


def check_sizes(num_heads: int, head_dim: int) -> None:
    """Raises `CheckpointError` for sizes that the operator refuses at run time."""
    if head_dim % 8:
        raise CheckpointError(
            "ONNX Runtime's GroupQueryAttention can't run this head size",
            found=f"head_dim {head_dim} in {num_heads} heads",
            wanted="a multiple of 8",
            mend="export with target portable",
        )


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
    """Causal attention of a chunk over cache plus chunk.

    Args:
        query: `[b, s, h * head_dim]`, rotated.
        key, value: `[b, s, g * head_dim]`, the key rotated.
        past_key, past_value: `[b, g, capacity, head_dim]`; the first `cache_length` slots are filled.
        length: `[b]` valid tokens of the chunk; the rest is padding on the right.
        cache_length: `[b]` tokens already in the cache.

    Returns:
        Mixed values `[b, s, h * head_dim]` and both caches with the chunk written behind the filled slots.
    """
    b, s, width = query.shape
    total = cache_length + length
    mixed, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (query, key, value, past_key, past_value, (total - 1).to(torch.int32), total.max().to(torch.int32)),
        {
            "num_heads": num_heads,
            "kv_num_heads": num_kv_heads,
            "scale": (width // num_heads) ** -0.5,
            "do_rotary": 0,
        },
        dtypes=(query.dtype, query.dtype, query.dtype),
        shapes=((b, s, width), tuple(past_key.shape), tuple(past_value.shape)),
        version=1,
    )
    return mixed, present_key, present_value
