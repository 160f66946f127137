"""bfloat16 graphs on a CPU: each operator computes in float32, and its result is rounded to bfloat16.

ONNX Runtime's CPU kernels know no bfloat16. So that such a bundle can climb the ladder anywhere, it is
climbed by a twin that rounds at the same places; only the order and the width of sums inside an operator are
the CPU's.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx_ir as ir

from foveate.runtime.bundle import Bundle
from foveate.runtime.manifest import MANIFEST_NAME, Stage, TensorSpec

_HALF: Final = ir.DataType.BFLOAT16
# What ONNX Runtime's CPU kernels do with numbers of any type.
_ANY_TYPE: Final = frozenset({"Cast", "Constant", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})


@contextlib.contextmanager
def runnable(bundle: Bundle, *, strict: bool = False) -> Iterator[Bundle]:
    """The bundle, or its twin in a temporary folder beside it where it has bfloat16; its caches are float32.

    `strict` makes a twin of float16 bundles as well, so that every rounding is there (see `in_float32`).
    """
    words = set(bundle.manifest.precision.stages.values())
    if "bf16" not in words and bundle.manifest.cache.dtype != "bfloat16" and not strict:
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix=f".{bundle.path.name}.twin-", dir=bundle.path.parent) as folder:
        yield _twin(bundle, Path(folder))


def _twin(bundle: Bundle, folder: Path) -> Bundle:
    manifest = bundle.manifest
    files = {record.file for record in manifest.stages.values()}
    for name in manifest.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name not in files:
            shutil.copyfile(bundle.path / name, target)  # onnx refuses weights behind links
    for name, record in manifest.stages.items():
        model = ir.load(bundle.stage_path(name))
        for half in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            in_float32(model, half)
        ir.save(model, folder / record.file)
    made = manifest.model_copy(
        update={
            "stages": {name: _plain(record) for name, record in manifest.stages.items()},
            "cache": manifest.cache.model_copy(update={"dtype": "float32"}),
        }
    )
    made = made.model_copy(update={"sha256": made.digest()})
    (folder / MANIFEST_NAME).write_text(made.model_dump_json(), encoding="utf-8")
    return Bundle(folder, made)


def _plain(record: Stage) -> Stage:
    """A stage whose caches are float32."""

    def plain(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        half, single = ("float16", "bfloat16"), {"dtype": "float32"}
        return tuple(spec.model_copy(update=single) if spec.dtype in half else spec for spec in specs)

    return record.model_copy(update={"inputs": plain(record.inputs), "outputs": plain(record.outputs)})


def in_float32(model: ir.Model, half: ir.DataType = _HALF) -> None:
    """Puts casts around every operator that would compute in a half type, and around inputs and outputs.

    float16 needs this where its rounding is to be seen: ONNX Runtime takes casts away that it put in itself
    around kernels which it lacks, and those of the graph that stand next to them.
    """
    graph = model.graph
    for value in graph.inputs:
        if value.dtype == half:
            readers = list(value.uses())
            value.type = ir.TensorType(ir.DataType.FLOAT)
            rounded = _cast(graph, value, half, before=graph[0])
            for reader, index in readers:
                reader.replace_input_with(index, rounded)
    for node in list(graph):
        if node.op_type not in _ANY_TYPE:
            _wrap(graph, node, half)
    for place, value in enumerate(graph.outputs):
        if value.dtype == half:
            name, value.name = value.name, f"{value.name}.rounded"
            wide = _cast(graph, value, ir.DataType.FLOAT, after=value.producer())
            wide.name = name
            graph.outputs[place] = wide


def _wrap(graph: ir.Graph, node: ir.Node, half: ir.DataType) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == half:
            node.replace_input_with(index, _cast(graph, value, ir.DataType.FLOAT, before=node))
    for value in node.outputs:
        if value.dtype != half:
            continue
        readers = list(value.uses())
        value.type = ir.TensorType(ir.DataType.FLOAT)
        rounded = _cast(graph, value, half, after=node)
        for reader, index in readers:
            reader.replace_input_with(index, rounded)
        if value.is_graph_output():
            rounded.name, value.name = value.name, f"{value.name}.float32"
            for place, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[place] = rounded


def _cast(
    graph: ir.Graph,
    value: ir.Value,
    dtype: ir.DataType,
    *,
    before: ir.Node | None = None,
    after: ir.Node | None = None,
) -> ir.Value:
    node = ir.node("Cast", [value], {"to": dtype.value})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    if before is not None:
        graph.insert_before(before, node)
    else:
        assert after is not None
        graph.insert_after(after, node)
    return node.outputs[0]
