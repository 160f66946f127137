"""Sorts become counts of who comes before whom: any length, and equal numbers in the order of their index.

ONNX promises that `TopK` keeps the lower of two equal entries first, and what a method keeps hangs on that.
TensorRT does not promise it, and refuses more than 3839 entries, at run time. Comparing all pairs has neither
limit; `[b, n, n]` comparisons are fused with their sum, and n is the tokens of a picture or a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


def compare_pairs(model: ir.Model) -> None:
    """Rewrites each `TopK` of rows `[b, n]` that sorts all of them.

    Sorts of `[b, n, n]` stay: of those only values are read, which do not hang on ties.
    """
    for node in list(model.graph):
        x = node.inputs[0] if node.op_type == "TopK" and node.domain == "" else None
        if x is not None and x.shape is not None and len(x.shape) == 2 and _sorts_all(node, x):
            _Sort(model.graph, node, x).write()


def _sorts_all(node: ir.Node, x: ir.Value) -> bool:
    """Whether K is the length of the last axis: its `Shape`, or the same number."""
    assert x.shape is not None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    k = node.inputs[1]
    while k is not None and (producer := k.producer()) is not None:
        if producer.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Cast", "Gather"):
            k = producer.inputs[0]
        elif producer.op_type == "Shape":
            return axis in (-1, 1) and producer.inputs[0] is x
        else:
            constant = ir.convenience.get_const_tensor(k)
            return constant is not None and constant.numpy().reshape(-1).tolist() == [x.shape[1]]
    return False


class _Sort:
    """One sort `[b, n]` that is about to be rewritten."""

    def __init__(self, graph: ir.Graph, node: ir.Node, x: ir.Value) -> None:
        self.graph, self.node, self.x = graph, node, x
        self._added = 0

    def write(self) -> None:
        """Puts both outputs' other makings in their place."""
        values, indices = self.node.outputs
        order = self._order()
        stand_ins = {indices: order}
        if values.uses() or values.is_graph_output():
            (stand_ins[values],) = self._add("GatherElements", [self.x, order], {"axis": 1})
            stand_ins[values].type = ir.TensorType(self.x.dtype) if self.x.dtype else None
        for old, new in stand_ins.items():
            new.shape, new.name = old.shape, old.name
            old.name = None
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)

    def _order(self) -> ir.Value:
        """Where each place's entry came from, int64 `[b, n]`."""
        largest = "largest" not in self.node.attributes or self.node.attributes["largest"].as_int() == 1
        mine = self._one("Unsqueeze", self.x, self._ints([2]))  # b n 1
        other = self._one("Unsqueeze", self.x, self._ints([1]))  # b 1 n
        better = self._one("Greater" if largest else "Less", other, mine)  # b n n
        place = self._places()
        earlier = self._one(
            "Less",
            self._one("Unsqueeze", place, self._ints([0])),
            self._one("Unsqueeze", place, self._ints([1])),
        )  # n n: the other one has the lower index
        tie = self._one("And", self._one("Equal", other, mine), earlier)
        before = self._one("Cast", self._one("Or", better, tie), to=ir.DataType.FLOAT.value)
        # float32 counts to 2^24, and TensorRT adds no integers any faster.
        count = self._one("ReduceSum", before, self._ints([2]), keepdims=0)  # b n
        rank = self._one("Cast", count, to=ir.DataType.INT64.value)
        whole = self._one("Expand", place, self._one("Shape", self.x))  # b n
        order = self._one("ScatterElements", whole, rank, whole, axis=1)
        order.type = ir.TensorType(ir.DataType.INT64)
        return order

    def _places(self) -> ir.Value:
        """0 to n - 1."""
        length = self._one("Squeeze", self._one("Shape", self.x, start=1, end=2), self._ints([0]))
        return self._one("Range", self._scalar(0), length, self._scalar(1))

    def _ints(self, values: Sequence[int]) -> ir.Value:
        return self._add("Constant", [], {"value": ir.tensor(np.array(values, np.int64))})[0]

    def _scalar(self, value: int) -> ir.Value:
        return self._add("Constant", [], {"value": ir.tensor(np.array(value, np.int64))})[0]

    def _one(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self._add(op, inputs, attributes)[0]

    def _add(
        self, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]
    ) -> tuple[ir.Value, ...]:
        self._added += 1
        node = ir.node(op, inputs, attributes, name=f"{self.node.name}.{op}_{self._added}")
        self.graph.insert_before(self.node, node)
        return tuple(node.outputs)
