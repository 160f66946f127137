"""How the exporter writes torch operators that torch's own table lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op

from foveate.export import loops

# TopK over the whole axis sorts it, and breaks ties towards the lower index: a stable sort in either
# direction. (TensorRT has no other sort.) Opset 18's TopK, Shape and Gather are those of all later opsets.


def _sort_stable(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """aten::sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False)"""
    shape: Any = op.Shape(self)
    size: Any = op.Gather(shape, op.Constant(value_ints=[dim]), axis=0)  # type: ignore[type-var]
    return op.TopK(self, size, axis=dim, largest=1 if descending else 0, sorted=1)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.sort.stable: _sort_stable,
    torch.ops.foveate.spread_rounds.default: loops.spread_rounds,
    torch.ops.foveate.map_rounds.default: loops.map_rounds,
}
