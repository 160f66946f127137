"""ONNX Runtime on CPU or CUDA: attention as `com.microsoft::GroupQueryAttention`, caches written in place.

RoPE stays outside the operator. With `do_rotary=1` its first-prompt path counts positions from
`position_ids[0]` and ignores the rest, so a pruned prompt would be silently wrong
(tests/export/test_targets.py has positions with holes).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from foveate.export.blocks.attention_ops import OPSET, masked_attention, rotary
from foveate.export.fusions.query_scale import fold_query_scale
from foveate.runtime.errors import CheckpointError

__all__ = ["HOST_LENGTHS", "OPSET", "cached_attention", "check_sizes", "lower", "rotary"]

HOST_LENGTHS: Final = False


def check_sizes(num_heads: int, head_dim: int) -> None:
    """Raises `CheckpointError` for sizes that the operator refuses at run time."""
    if head_dim % 8:
        raise CheckpointError(
            "ONNX Runtime's GroupQueryAttention can't run this head size",
            found=f"head_dim {head_dim} in {num_heads} heads",
            wanted="a multiple of 8",
            mend="export with target portable",
        )


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
    """Causal attention of a chunk over cache plus chunk.

    Args:
        query: `[b, s, h * head_dim]`, rotated.
        key, value: `[b, s, g * head_dim]`, the key rotated.
        past_key, past_value: `[b, g, capacity, head_dim]`; the first `cache_length` slots are filled.
        length: `[b]` valid tokens of the chunk; the rest is padding on the right.
        cache_length: `[b]` tokens already in the cache.
        scale: of the softmax.
        visible: bool `[b, s, capacity]`, the slots that each query sees; None for all before it. The operator
            knows no such masks, so these layers are lowered as in target portable.
        longest: int32 `[1]`, tokens of the longest row with its cache; None to work it out in the graph.

    Returns:
        Mixed values `[b, s, h * head_dim]` and both caches with the chunk written behind the filled slots.
    """
    if visible is not None:
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
    b, s, width = query.shape
    total = cache_length + length
    longest = total.max().to(torch.int32) if longest is None else longest
    mixed, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (query, key, value, past_key, past_value, (total - 1).to(torch.int32), longest),
        {
            "num_heads": num_heads,
            "kv_num_heads": num_kv_heads,
            "scale": scale,
            "do_rotary": 0,
        },
        dtypes=(query.dtype, query.dtype, query.dtype),
        shapes=((b, s, width), tuple(past_key.shape), tuple(past_value.shape)),
        version=1,
    )
    return mixed, present_key, present_value


def lower(model: ir.Model) -> None:
    """Writes what ONNX Runtime runs faster in other words (foveate.export.fusions).

    An encoder's unmasked `Attention` becomes `com.microsoft::MultiHeadAttention`.

    The CPU kernel of that goes through the keys in blocks: half the time and a thirteenth of the memory
    at 4096 patches of 16 heads (0.82 s and 85 MB against 1.51 s and 1141 MB, one thread, ONNX Runtime 1.31;
    `tests/export/attention_cost.py`).
    """
    for node in list(model.graph):
        if node.op_type == "Attention" and node.domain == "" and len(node.inputs) == 3:
            _replace(node, model.graph)
            model.opset_imports["com.microsoft"] = 1
    fold_query_scale(model)


def _replace(node: ir.Node, graph: ir.Graph) -> None:
    """Heads side by side before the new operator `[b, n, h * e]`, and apart behind it `[b, h, n, e]`."""
    query = node.inputs[0]
    assert query is not None
    assert query.shape is not None
    heads, width = query.shape[1], query.shape[3]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else width**-0.5
    shapes = {"side_by_side": [0, 0, heads * width], "apart": [0, 0, heads, width]}
    constants = {name: _shape(shape, f"{node.name}.{name}") for name, shape in shapes.items()}
    made = list(constants.values())
    flat = []
    for value in node.inputs:
        turned = ir.node("Transpose", [value], {"perm": [0, 2, 1, 3]})
        joined = ir.node("Reshape", [turned.outputs[0], constants["side_by_side"].outputs[0]])
        made += [turned, joined]
        flat.append(joined.outputs[0])
    attributes = {"num_heads": heads, "scale": float(scale)}
    mixed = ir.node("MultiHeadAttention", flat, attributes, domain="com.microsoft", version=1)
    apart = ir.node("Reshape", [mixed.outputs[0], constants["apart"].outputs[0]])
    back = ir.node("Transpose", [apart.outputs[0]], {"perm": [0, 2, 1, 3]})
    made += [mixed, apart, back]
    back.outputs[0].shape, back.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    back.name = node.name
    back.metadata_props.update(node.metadata_props)  # its scope tells which layer it belongs to
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, node.outputs, back.outputs)


def _shape(shape: list[int], name: str) -> ir.Node:
    value = ir.tensor(np.array(shape, np.int64), name=name)
    return ir.node("Constant", [], {"value": value})
