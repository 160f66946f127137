"""Recording what linear layers are given: the fp32 graphs, with some rows of each layer's input as outputs.

The rows are sampled inside the graphs, so that memory stays small whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
import torch

from foveate.export.precision import LinearLayer
from foveate.export.precision.sensitivity import Call
from foveate.runtime.arrays import Array, Arrays, Bindings
from foveate.runtime.backend import NO_BINDINGS, Runner
from foveate.runtime.backends.onnxruntime import Backend
from foveate.runtime.bundle import Bundle
from foveate.runtime.manifest import Stage, TensorSpec
from foveate.runtime.model import Model
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.processor import Processor
from foveate.tools.precision.prompts import Probe

ROWS: Final = 64  # of each layer and call, at least, where there are as many; less than twice as many
_LAST: Final = 2**62

Calls = dict[str, list[Call]]
"""What each layer was given, by layer name."""

Progress = Callable[[str, int, int], None]


def record(
    bundle: Bundle,
    layers: Sequence[LinearLayer],
    probes: Sequence[Probe],
    *,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Calls, np.ndarray]:
    """Reads all probes with all their visual tokens; gives what each layer saw, and the logits `[rows, v]`.

    Raises:
        BackendError: a graph cannot be loaded, or failed.
    """
    backend = _Watching({layer.weight: layer.name for layer in layers}, threads)
    progress("reading probes", 0, len(probes))  # loading takes its time, too
    logits = read_logits(pipeline_of(bundle, backend), probes, progress)
    return backend.calls, logits


def read_logits(
    pipeline: Pipeline, probes: Sequence[Probe], progress: Progress = lambda what, done, total: None
) -> np.ndarray:
    """Logits `[rows, v]` of all text rows behind each probe's picture, with nothing pruned.

    Visual rows predict nothing that the model was trained for.
    """
    options, found = keep_all(pipeline.bundle), []
    for number, probe in enumerate(probes):
        progress("reading probes", number, len(probes))
        prepared = pipeline.prepare(probe.question, [probe.picture], options)
        read = pipeline.prefill(prepared, options, logits="all")
        shown = np.flatnonzero(prepared.block[0] >= 0)
        first = int(shown[-1]) if len(shown) else 0
        found.append(read.logits[0, first : int(prepared.length[0])])
    progress("reading probes", len(probes), len(probes))
    return np.concatenate(found)


def pipeline_of(bundle: Bundle, backend: Backend) -> Pipeline:
    """A pipeline of a bundle's first layout."""
    manifest = bundle.manifest
    model = Model(bundle, next(iter(manifest.layouts)), backend)
    return Pipeline(bundle, model, Processor(bundle.processor_path, manifest.model, manifest.family))


def keep_all(bundle: Bundle) -> GenerateOptions:
    """Asks for all visual tokens at all sites: two precisions can be compared row by row."""
    sites = [cut.name for cut in bundle.manifest.pruning if cut.site != "layers"]
    return GenerateOptions(keep=dict.fromkeys(sites, Budget(ratio=1.0)), allow_unpruned=True)


class _Watching(Backend):
    """Opens graphs with more outputs than they have, and keeps those to itself."""

    def __init__(self, layers: Mapping[str, str], threads: int | None) -> None:
        """`layers` are names by weight."""
        super().__init__(threads)
        self._layers = layers
        self.calls: Calls = {}

    def open(self, path: Path, name: str, stage: Stage) -> Runner:  # type: ignore[override]
        model = ir.load(path)
        taken = watch(model, self._layers)
        more = tuple(TensorSpec(name=n, dtype="float32", shape=s) for n, s in _outputs(model, taken))
        # Beside the original, because its weights are found from there.
        beside = path.with_name(f".probe-{path.name}")
        try:
            ir.save(model, beside)
            runner = super().open(beside, name, stage.model_copy(update={"outputs": stage.outputs + more}))
        finally:
            beside.unlink(missing_ok=True)
        return _Recorder(runner, stage, taken, self.calls)


class _Recorder:
    """A runner that takes the recorded outputs out of each result."""

    def __init__(
        self, runner: Runner, stage: Stage, taken: Mapping[str, Sequence[str]], calls: Calls
    ) -> None:
        self.stage = stage
        self._runner, self._taken, self._calls = runner, taken, calls

    def run(self, feeds: Arrays, bindings: Bindings = NO_BINDINGS) -> dict[str, Array]:
        """See `foveate.runtime.backend.Runner.run`."""
        out = self._runner.run(feeds, bindings)
        for stem, names in self._taken.items():
            rows, low, high = (out.pop(f"{stem}.{part}") for part in ("rows", "low", "high"))
            if len(rows):
                call = Call(torch.from_numpy(rows.copy()), float(low), float(high))
                for name in names:
                    self._calls.setdefault(name, []).append(call)
        return out


def watch(model: ir.Model, layers: Mapping[str, str]) -> dict[str, list[str]]:
    """Adds outputs for the input of each product by a weight in `layers` (weight to layer name).

    Returns the names of the layers that share an input, by the stem of its outputs: `stem.rows [r, k]`,
    `stem.low []` and `stem.high []`.
    """
    taken: dict[str, list[str]] = {}
    stems: dict[ir.Value, str] = {}
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" and node.domain == "" else None
        x = node.inputs[0] if weight is not None else None
        if weight is None or x is None or not weight.is_initializer() or weight.name not in layers:
            continue
        if x not in stems:
            stems[x] = f"probe.{len(stems)}"
            assert weight.shape is not None
            _sample(model.graph, node, x, int(str(weight.shape[0])), stems[x])
        taken.setdefault(stems[x], []).append(layers[str(weight.name)])
    return taken


def _sample(graph: ir.Graph, place: ir.Node, x: ir.Value, k: int, stem: str) -> None:
    """Every so many rows of `x [..., k]`, and the range of all; both also where there are no rows."""

    def add(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        graph.insert_before(place, node)
        return node.outputs[0]

    def constant(values: Iterable[int]) -> ir.Value:
        node = ir.node("Constant", [], {"value": ir.tensor(np.array(list(values), np.int64))})
        graph.insert_before(place, node)
        return node.outputs[0]

    flat = add("Reshape", x, constant([-1, k]))
    zero, one = constant([0]), constant([1])
    count = add("Gather", add("Shape", flat), zero, axis=0)
    step = add("Max", add("Div", count, constant([ROWS])), one)
    rows = add("Slice", flat, zero, constant([_LAST]), zero, step)
    padded = add("Concat", flat, add("Cast", add("Expand", zero, constant([1, k])), to=1), axis=0)
    low, high = (add(op, padded, keepdims=0) for op in ("ReduceMin", "ReduceMax"))
    for part, value, shape in (("rows", rows, ("rows", k)), ("low", low, ()), ("high", high, ())):
        value.name = f"{stem}.{part}"
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        graph.outputs.append(value)


def _outputs(model: ir.Model, taken: Mapping[str, object]) -> Iterable[tuple[str, tuple[int | str, ...]]]:
    """Names and shapes of the outputs that were added."""
    for value in model.graph.outputs:
        if (value.name or "").rpartition(".")[0] in taken:
            assert value.shape is not None
            yield str(value.name), tuple(axis if isinstance(axis, int) else "rows" for axis in value.shape)
