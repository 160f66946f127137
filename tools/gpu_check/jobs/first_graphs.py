"""The small graphs of the first tests on TensorRT, by hand: what it takes, not what we export.

A decoding step has two layers. Each layer's cache is `[b, g, slots, d]`; rows of this call are written at
`write_index_<group>`, and query row `i` sees the slots up to its own. `portable` says so by a mask, `native`
by lengths. Both have the same weights, so one is the oracle of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from foveate.runtime.arrays import Array

OPSET: Final = 24
HIDDEN, HEADS, GROUPS, WIDTH, SLOTS = 128, 4, 2, 64, 32
"""Width of the stream, query heads, key heads, width of a head, slots of a cache."""


@dataclass
class Draft:
    """Nodes, constants, inputs and outputs of a graph that is being written; `kind` is of its numbers."""

    kind: str
    nodes: list[Any]
    constants: list[Any]
    inputs: list[Any]
    outputs: list[Any]

    @classmethod
    def empty(cls, kind: str = "FLOAT") -> Draft:
        """Nothing yet."""
        return cls(kind, [], [], [], [])

    @property
    def dtype(self) -> Any:
        """`kind` as numpy calls it."""
        return {"FLOAT": np.float32, "FLOAT16": np.float16}[self.kind]

    def node(self, op: str, ins: Sequence[str], out: str, domain: str = "", **attributes: Any) -> str:
        """One node of one output, whose name it gives."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(ins), [out], name=out, domain=domain, **attributes))
        return out

    def constant(self, name: str, value: Array) -> str:
        """An initializer."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def input(self, name: str, kind: str, shape: Sequence[int | str]) -> str:
        """An input of a kind of `onnx.TensorProto`."""
        self.inputs.append(_value(name, kind, shape))
        return name

    def output(self, name: str, kind: str, shape: Sequence[int | str]) -> None:
        """An output."""
        self.outputs.append(_value(name, kind, shape))

    def bytes(self, name: str) -> bytes:
        """The model."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("trt", 1)]
        made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return made


def _value(name: str, kind: str, shape: Sequence[int | str]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), list(shape))


def decode(form: str, *, groups: int = 1, kind: str = "FLOAT16") -> bytes:
    """Two layers over caches, in half precision, or, for the oracle, with the same weights in single.

    Args:
        form: `portable` (TensorScatter, Attention, a mask per group) or `native` (TRT_KVCacheUpdate,
            TRT_Attention, a length per group).
        groups: 1, or 2 for a write index and a length (or mask) of its own for each layer.
    """
    draft, rng = Draft.empty(kind), np.random.default_rng(7)
    hidden = draft.input("x", kind, ("b", "s", HIDDEN))
    for group in range(groups):
        draft.input(f"write_index_{group}", "INT64" if form == "portable" else "INT32", ("b",))
        if form == "portable":
            draft.input(f"mask_{group}", kind, ("b", 1, "s", SLOTS))
        else:
            draft.input(f"key_length_{group}", "INT32", ("b",))
    for layer in range(2):
        mixed = _attention(draft, rng, form, layer, min(layer, groups - 1), hidden)
        hidden = draft.node("Add", (hidden, mixed), "y" if layer else "stream")
    draft.output("y", kind, ("b", "s", HIDDEN))
    return draft.bytes(f"decode_{form}_{groups}")


def _attention(draft: Draft, rng: np.random.Generator, form: str, layer: int, group: int, hidden: str) -> str:
    heads = {"q": HEADS, "k": GROUPS, "v": GROUPS}
    rows = {name: _heads(draft, rng, f"{name}{layer}", hidden, count) for name, count in heads.items()}
    held = {}
    for name in ("k", "v"):
        cache = draft.input(f"cache_{name}{layer}", draft.kind, ("b", GROUPS, SLOTS, WIDTH))
        op, domain = ("TensorScatter", "") if form == "portable" else ("TRT_KVCacheUpdate", "trt")
        ins = (cache, rows[name], f"write_index_{group}")
        held[name] = draft.node(op, ins, f"cache_{name}{layer}_out", domain, axis=-2, mode="linear")
        draft.output(held[name], draft.kind, ("b", GROUPS, SLOTS, WIDTH))
    out = f"attended{layer}"
    if form == "portable":
        draft.node("Attention", (rows["q"], held["k"], held["v"], f"mask_{group}"), out, scale=WIDTH**-0.5)
    else:
        scale = draft.constant(f"scale{layer}", np.array(WIDTH**-0.5, draft.dtype))
        scaled = draft.node("Mul", (rows["q"], scale), f"scaled{layer}")
        looked = (scaled, held["k"], held["v"], "", "", f"key_length_{group}")
        draft.node("TRT_Attention", looked, out, "trt", causal_kind="lower_right", TRT_decomposable=1)
    turned = draft.node("Transpose", (out,), f"turned{layer}", perm=[0, 2, 1, 3])
    shape = draft.constant(f"flat{layer}", np.array([0, 0, HEADS * WIDTH], np.int64))
    flat = draft.node("Reshape", (turned, shape), f"joined{layer}")
    weight = draft.constant(f"w_o{layer}", _weight(rng, HEADS * WIDTH, HIDDEN).astype(draft.dtype))
    return draft.node("MatMul", (flat, weight), f"mixed{layer}")


def _heads(draft: Draft, rng: np.random.Generator, name: str, hidden: str, heads: int) -> str:
    weight = draft.constant(f"w_{name}", _weight(rng, HIDDEN, heads * WIDTH).astype(draft.dtype))
    product = draft.node("MatMul", (hidden, weight), f"{name}_rows")
    shape = draft.constant(f"{name}_shape", np.array([0, 0, heads, WIDTH], np.int64))
    return draft.node(
        "Transpose", (draft.node("Reshape", (product, shape), f"{name}_split"),), name, perm=[0, 2, 1, 3]
    )


def _weight(rng: np.random.Generator, inner: int, outer: int) -> Array:
    drawn: Array = (rng.standard_normal((inner, outer)) * inner**-0.5).astype(np.float16)
    return drawn


def nonzero_tail() -> bytes:
    """Rows whose score is above a limit: a length that only the data tells."""
    draft = Draft.empty()
    draft.input("rows", "FLOAT", ("n", HIDDEN))
    draft.input("score", "FLOAT", ("n",))
    limit = draft.constant("limit", np.array(0.5, np.float32))
    above = draft.node("Greater", ("score", limit), "above")
    found = draft.node("NonZero", (above,), "found")
    flat = draft.node("Reshape", (found, draft.constant("all", np.array([-1], np.int64))), "index")
    draft.node("Gather", ("rows", flat), "kept", axis=0)
    draft.output("kept", "FLOAT", ("k", HIDDEN))
    return draft.bytes("nonzero_tail")


def half_top_k() -> bytes:
    """The better half of the rows in their order: K from the input's shape, not from its data."""
    draft = Draft.empty()
    draft.input("rows", "FLOAT", ("n", HIDDEN))
    draft.input("score", "FLOAT", ("n",))
    count = draft.node("Shape", ("score",), "count")
    half = draft.node("Div", (count, draft.constant("two", np.array([2], np.int64))), "half")
    _gather_best(draft, half)
    draft.output("kept", "FLOAT", ("k", HIDDEN))
    return draft.bytes("half_top_k")


def carried_segments() -> bytes:
    """Two segments of a prefill in one graph; the second one reads as many rows as an input is long."""
    draft, rng = Draft.empty(), np.random.default_rng(3)
    draft.input("x", "FLOAT", ("n", HIDDEN))
    draft.input("carrier", "INT32", ("k",))
    first = draft.constant("w_first", _weight(rng, HIDDEN, HIDDEN).astype(np.float32))
    draft.node("MatMul", ("x", first), "rows")
    draft.node("ReduceMax", ("rows", draft.constant("axes", np.array([1], np.int64))), "score", keepdims=0)
    kept = _gather_best(draft, draft.node("Shape", ("carrier",), "k"))
    second = draft.constant("w_second", _weight(rng, HIDDEN, HIDDEN).astype(np.float32))
    draft.node("MatMul", (kept, second), "y")
    draft.output("y", "FLOAT", ("k", HIDDEN))
    return draft.bytes("carried_segments")


def _gather_best(draft: Draft, count: str) -> str:
    """The `count` best rows, ascending: their numbers are sorted by a second TopK."""
    from onnx import TensorProto, helper

    draft.nodes.append(helper.make_node("TopK", ["score", count], ["best", "order"], name="choose", axis=0))
    number = draft.node("Cast", ("order",), "number", to=TensorProto.FLOAT)
    draft.nodes.append(
        helper.make_node("TopK", [number, count], ["sorted", "_"], name="sort", axis=0, largest=0)
    )
    index = draft.node("Cast", ("sorted",), "index", to=TensorProto.INT64)
    return draft.node("Gather", ("rows", index), "kept", axis=0)
