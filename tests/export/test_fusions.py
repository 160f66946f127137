"""Rewritten graphs against the graphs that they were made of, both run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from foveate.export.fusions.query_scale import fold_query_scale

HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 6, 2, 16, 12
SCALE = 0.3
TEXT = f"""
<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>
decoder (float[b, s, {HEADS * HEAD_DIM}] query, float[b, s, {KV_HEADS * HEAD_DIM}] key,
         float[b, s, {KV_HEADS * HEAD_DIM}] value, float[b, s, half] angle, int32[b] last, int32 total,
         float[b, {KV_HEADS}, {CAPACITY}, {HEAD_DIM}] past_key,
         float[b, {KV_HEADS}, {CAPACITY}, {HEAD_DIM}] past_value)
      => (float[b, s, {HEADS * HEAD_DIM}] mixed, float[b, s, {HEADS * HEAD_DIM}] OUT)
{{
   cos = Cos(angle)
   sin = Sin(angle)
   turned = RotaryEmbedding<num_heads = {HEADS} ROTARY>(query, cos, sin)
   turned_key = RotaryEmbedding<num_heads = {KV_HEADS} ROTARY>(key, cos, sin)
   mixed, present_key, present_value = com.microsoft.GroupQueryAttention<num_heads = {HEADS},
      kv_num_heads = {KV_HEADS}, scale = {SCALE}, do_rotary = 0>
      (turned, turned_key, value, past_key, past_value, last, total)
   OUT = Identity(READ)
}}
"""


def _graph(read: str = "query", rotary: str = "") -> ir.Model:
    text = TEXT.replace("ROTARY", rotary).replace("READ", read).replace("OUT", "read")
    return ir.from_onnx_text(text)


def _feeds(sequence: int, cached: int, turned: int = HEAD_DIM) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "query": draw(1, sequence, HEADS * HEAD_DIM),
        "key": draw(1, sequence, KV_HEADS * HEAD_DIM),
        "value": draw(1, sequence, KV_HEADS * HEAD_DIM),
        "angle": draw(1, sequence, turned // 2),
        "last": np.array([cached + sequence - 1], np.int32),
        "total": np.array(cached + sequence, np.int32),
        "past_key": draw(1, KV_HEADS, CAPACITY, HEAD_DIM),
        "past_value": draw(1, KV_HEADS, CAPACITY, HEAD_DIM),
    }


def _run(model: ir.Model, feeds: dict[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    outputs: list[NDArray[np.float32]] = session.run(None, feeds)
    return outputs


def _attention(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "GroupQueryAttention")


@pytest.mark.parametrize(("sequence", "cached"), [(7, 0), (1, 9), (3, 4)])
@pytest.mark.parametrize("read", ["query", "turned"])
def test_scale_goes_into_the_angles(sequence: int, cached: int, read: str) -> None:
    """Also where somebody else reads the rotated queries: those keep their size."""
    plain, folded = _graph(read), _graph(read)
    fold_query_scale(folded)
    assert _attention(folded).attributes["scale"].as_float() == 1.0
    feeds = _feeds(sequence, cached)
    for got, wanted in zip(_run(folded, feeds), _run(plain, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


def test_unread_rotation_goes() -> None:
    counts = []
    for read in ("query", "turned"):
        model = _graph(read)
        fold_query_scale(model)
        counts.append(sum(node.op_type == "RotaryEmbedding" for node in model.graph))
    assert counts == [2, 3]


def test_partial_rotation_is_left_alone() -> None:
    """What it does not turn would miss the scale."""
    model = _graph(rotary=f", rotary_embedding_dim = {HEAD_DIM // 2}")
    fold_query_scale(model)
    assert _attention(model).attributes["scale"].as_float() == pytest.approx(SCALE)
    assert _run(model, _feeds(4, 0, HEAD_DIM // 2))[0].shape == (1, 4, HEADS * HEAD_DIM)


def test_twice_is_once() -> None:
    model = _graph()
    fold_query_scale(model)
    before = len(list(model.graph))
    fold_query_scale(model)
    assert len(list(model.graph)) == before
