"""A bundle's graphs under a plan, without another export: to see what it does before it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from foveate.export.graph_file import DATA_TYPES, point_into
from foveate.export.precision import LinearLayer, PrecisionPlan
from foveate.export.precision.form import Form
from foveate.export.precision.forms import plan_forms
from foveate.export.precision.layers import stage_of
from foveate.export.precision.rewrite import rewrite
from foveate.export.precision.storage import store
from foveate.export.precision.typed import is_cache, type_graph
from foveate.export.weights import Parameter, Placement, plan_placements, write_weights
from foveate.runtime.bundle import Bundle
from foveate.runtime.manifest import Stage, TensorSpec
from foveate.tools.parity.rounded import in_float32

_NAMES = {dtype: name for name, dtype in DATA_TYPES.items()}
_PREFIX = ".trial-"

Loader = Callable[[], Tensor]
Progress = Callable[[str, int, int], None]


@contextlib.contextmanager
def trial(bundle: Bundle, layers: Sequence[LinearLayer], plan: PrecisionPlan) -> Iterator[Bundle]:
    """The first layout of an fp32 bundle as `plan` has it, for as long as the context is open."""
    with Trials(bundle, layers) as trials, trials.under(plan) as changed:
        yield changed


class Trials:
    """An fp32 bundle's first layout under one plan after another; a weight is encoded once for each kernel.

    Graphs, and the weights that are stored another way, stand beside the bundle's own files while the context
    is open; the other weights are the bundle's. The words' table stays fp32: rounding it to half is no part
    of a kernel.

    Attributes:
        loaders: of the bundle's own weights, by name.
    """

    def __init__(
        self,
        bundle: Bundle,
        layers: Sequence[LinearLayer],
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self._bundle, self._layers, self._progress = bundle, layers, progress
        self._stages = tuple(next(iter(bundle.manifest.layouts.values())))
        self._folder = bundle.stage_path(self._stages[0]).parent
        self._parameters, self.loaders = weights_of(self._load().values())
        self._files: list[Path] = []
        self._places: dict[tuple[str, Form], dict[str, tuple[Placement, Path]]] = {}

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def under(self, plan: PrecisionPlan) -> Iterator[Bundle]:
        """The bundle as `plan` has it, for as long as the context is open; one at a time."""
        forms = plan_forms(plan, self._layers, self._bundle.manifest.target)
        places = self._encoded(forms)
        files = {name: self._folder / f"{_PREFIX}{name}.onnx" for name in self._stages}
        try:
            for name, model in self._load().items():
                rewrite(model, forms)
                if half := plan.half(stage_of(name)):
                    type_graph(model, half)
                in_float32(model)  # GPUs' bfloat16, which no CPU kernel knows
                for value in model.graph.initializers.values():
                    if value.const_value is None:
                        point_into(value, *places[str(value.name)])
                ir.save(model, files[name])
            yield self._described(plan, files)
        finally:
            for file in files.values():
                file.unlink(missing_ok=True)

    def _load(self) -> dict[str, ir.Model]:
        return {name: ir.load(self._bundle.stage_path(name)) for name in self._stages}

    def _encoded(self, forms: Mapping[str, Form]) -> dict[str, tuple[Placement, Path]]:
        """Where the parts of weights lie, by name; those that are new go into a file of their own."""
        own = {name: form for name, form in forms.items() if name in self._parameters}
        new = {name: form for name, form in own.items() if (name, form) not in self._places}
        if new:
            file = self._folder / f"{_PREFIX}weights-{len(self._files)}.bin"
            self._files.append(file)
            parameters = {name: self._parameters[name] for name in new}
            stored, loaders = store(parameters, self.loaders, new, half_table=None)
            placements, size = plan_placements(stored)
            write_weights(file, placements, loaders, lambda done: self._progress("encoding", done, size))
            self._progress("encoding", size, size)
            for name, form in new.items():
                parts = form.parts(*parameters[name].shape)
                stems = [f"{name}.{suffix}" for suffix in parts]
                self._places[name, form] = {stem: (placements[stem], file) for stem in stems}
        return {stem: place for key in own.items() for stem, place in self._places[key].items()}

    def _described(self, plan: PrecisionPlan, files: Mapping[str, Path]) -> Bundle:
        manifest = self._bundle.manifest
        records = {
            name: record.model_copy(update={"file": f"{self._folder.name}/{files[name].name}"})
            if name in files
            else record
            for name, record in manifest.stages.items()
        }
        changes: dict[str, object] = {"stages": records}
        if plan.half("decoder") == "float16":
            changes["cache"] = manifest.cache.model_copy(update={"dtype": "float16"})
            changes["stages"] = {name: _in_half(record) for name, record in records.items()}
        return Bundle(self._bundle.path, manifest.model_copy(update=changes))


def _in_half(record: Stage) -> Stage:
    """A stage whose caches are float16."""

    def typed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        half = {"dtype": "float16"}
        return tuple(spec.model_copy(update=half) if is_cache(spec.name) else spec for spec in specs)

    return record.model_copy(update={"inputs": typed(record.inputs), "outputs": typed(record.outputs)})


def weights_of(models: Iterable[ir.Model]) -> tuple[dict[str, Parameter], dict[str, Loader]]:
    """Parameters and loaders of all weights of loaded graphs, by name; nothing is read yet."""
    parameters: dict[str, Parameter] = {}
    loaders: dict[str, Loader] = {}
    for model in models:
        for name, value in model.graph.initializers.items():
            if value.dtype not in _NAMES or value.const_value is None:
                continue
            shape = tuple(int(str(size)) for size in value.shape or ())
            parameters[name] = Parameter(shape, transposed=False, dtype=_NAMES[value.dtype])
            loaders[name] = _loader(value.const_value)
    return parameters, loaders


def _loader(tensor: ir.TensorProtocol) -> Loader:
    return lambda: torch.from_numpy(tensor.numpy().copy())
