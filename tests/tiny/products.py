"""The products by weights of a bundle's graphs, as the exporter's list of linear layers would have them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from foveate.export.precision import LinearLayer
from foveate.export.precision.layers import stage_of
from foveate.runtime.bundle import Bundle


def products_of(bundle: Bundle) -> Iterator[LinearLayer]:
    """All of an fp32 bundle's first layout, also those that are too small to be quantised in earnest."""
    for name in next(iter(bundle.manifest.layouts.values())):
        stage = stage_of(name)
        for node in ir.load(bundle.stage_path(name)).graph:
            weight = node.inputs[1] if node.op_type == "MatMul" else None
            if weight is not None and weight.is_initializer() and "cuts." not in str(weight.name):
                k, n = (int(str(size)) for size in weight.shape or ())
                yield LinearLayer(str(weight.name).removesuffix(".weight"), stage, k, n, (name,))
