"""From a stage to an ONNX graph, traced with fake tensors: no weight is ever allocated."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from types import ModuleType

import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from foveate.export.blocks.linear import multiplied_weights, partial_weights, transposed_weights
from foveate.export.blocks.visual_skipping import checkpoint_names
from foveate.export.stage import Stage
from foveate.export.translations import TRANSLATIONS
from foveate.export.weights import Parameter
from foveate.runtime.errors import ExportError, FoveateError

_SCOPES = "pkg.torch.onnx.name_scopes"
_LITERALS = {
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
}


def read_parameters(stage: Stage) -> dict[str, Parameter]:
    """Returns the parameters of a stage by name; allocates and traces nothing."""
    with FakeTensorMode():
        module = stage.build()
    transposed, pieces, names = transposed_weights(module), partial_weights(module), checkpoint_names(module)
    linear = multiplied_weights(module)
    return {
        name: Parameter(
            tuple(value.shape), name in transposed, pieces.get(name), names.get(name), name in linear
        )
        for name, value in module.named_parameters()
    }


def trace_stage(stage: Stage, target: ModuleType) -> ir.Model:
    """Returns the graph of a stage in a target's operators: no weights; named inputs, outputs and axes.

    Raises:
        ExportError: torch could not trace or translate the module.
    """
    try:
        with _quiet(), FakeTensorMode(shape_env=ShapeEnv()):
            program = torch.onnx.export(
                stage.build().eval(),
                tuple(spec.example() for spec in stage.inputs),
                dynamo=True,
                opset_version=target.OPSET,
                optimize=False,  # constant folding would meet fake weights
                verbose=False,
                input_names=[spec.name for spec in stage.inputs],
                output_names=[spec.name for spec in stage.outputs],
                dynamic_shapes=(tuple(_dynamic_axes(spec.shape) for spec in stage.inputs),),
                custom_translation_table=TRANSLATIONS,
            )
    except FoveateError:
        raise
    except Exception as e:
        raise ExportError(f"stage {stage.name} could not be traced", found=_root_cause(e)) from e
    assert program is not None
    target.lower(program.model)
    _name_layers(program.model, stage.name)
    _tidy(program.model, stage)
    return program.model


def _root_cause(error: BaseException) -> str:
    """The innermost error's words; the outer ones are the exporter's advice to its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip()[:600]}"


def _dynamic_axes(shape: tuple[int | str, ...]) -> dict[int, Dim]:
    return {i: Dim(axis) for i, axis in enumerate(shape) if isinstance(axis, str)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's exporter, which warns about axis names and packages that do not matter here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_layers(model: ir.Model, stage_name: str) -> None:
    """Gives each layer's output a stable name: `layer_3.hidden`, or `vision.layer_3.hidden` in the encoder.

    `foveate verify` asks for these values when two runs differ, to say in which layer they part.
    """
    prefix = "vision." if stage_name.startswith("vision") else ""
    last: dict[str, ir.Value] = {}
    for node in model.graph:
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
        # A layer that only lends its projections to a score never runs itself, and has no output to name.
        hits = [hit for scope in scopes if (hit := re.search(r"(?:^|\.)layers\.(\d+)$", scope))]
        if hits:
            last[hits[0].group(1)] = node.outputs[0]
            node.name = f"{scopes[-2].lstrip('.')}.{node.op_type}_{node.name}"
    for layer, value in last.items():
        if not value.is_graph_output():
            value.name = f"{prefix}layer_{layer}.hidden"


def _replace_cast_like(model: ir.Model) -> None:
    """Turns `CastLike` into `Cast`: ONNX Runtime has no constant folding for it, and warns at every load."""
    for node in model.graph:
        if node.op_type == "CastLike":
            dtype = node.outputs[0].dtype or _dtype(node.inputs[1])
            if dtype is None:
                continue
            node.op_type = "Cast"
            node.attributes.add(ir.AttrInt64("to", dtype.value))
            node.resize_inputs(1)


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    """A value's dtype, also where only the literal behind it tells."""
    producer = value.producer() if value is not None else None
    if value is None or value.dtype is not None or producer is None or producer.op_type != "Constant":
        return value.dtype if value is not None else None
    (literal,) = producer.attributes.values()
    return literal.value.dtype if literal.name == "value" else _LITERALS.get(literal.name)


def _tidy(model: ir.Model, stage: Stage) -> None:
    """Removes the tracer's leftovers; nothing here looks at weights."""
    _replace_cast_like(model)
    for clean in (
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
    ):
        clean(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):  # and into loop bodies
        node.metadata_props.clear()  # file paths and stack traces of the machine that exported
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for value, spec in zip(model.graph.outputs, stage.outputs, strict=True):
        value.shape = ir.Shape(spec.shape)
    model.graph.name = stage.name
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
