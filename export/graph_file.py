"""Writing one graph whose weights lie in the bundle's common file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnx_ir as ir

from foveate.export.weights import WEIGHTS_FILE, Placement

DATA_TYPES: Final[Mapping[str, ir.DataType]] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int4": ir.DataType.INT4,
}


def write_graph(model: ir.Model, path: Path, placements: Mapping[str, Placement]) -> None:
    """Writes `model` to `path`, its initialisers pointing into `weights.bin` beside it."""
    for name, value in model.graph.initializers.items():
        place = placements[name]
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE,
            place.offset,
            place.nbytes,
            DATA_TYPES[place.dtype],
            name=name,
            shape=ir.Shape(value.shape or ()),
            base_dir=path.parent,
        )
    model.producer_name = "foveate"
    model.producer_version = importlib.metadata.version("foveate")
    ir.save(model, path)
