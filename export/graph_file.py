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
    "bfloat16": ir.DataType.BFLOAT16,
    "float8e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int4": ir.DataType.INT4,
}


def write_graph(model: ir.Model, path: Path, placements: Mapping[str, Placement]) -> None:
    """Writes `model` to `path`, its initialisers pointing into `weights.bin` beside it."""
    for name, value in model.graph.initializers.items():
        point_into(value, placements[name], path.parent / WEIGHTS_FILE)
    model.producer_name = "foveate"
    model.producer_version = importlib.metadata.version("foveate")
    ir.save(model, path)


def point_into(value: ir.Value, place: Placement, weights: Path) -> None:
    """Makes an initialiser's numbers those at a place in a file of weights; its shape stays."""
    value.const_value = ir.ExternalTensor(
        weights.name,
        place.offset,
        place.nbytes,
        DATA_TYPES[place.dtype],
        name=str(value.name),
        shape=ir.Shape(value.shape or ()),
        base_dir=weights.parent,
    )
