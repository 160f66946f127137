"""A bundle's graphs under a plan, without another export: to see what it does before it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

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
from foveate.export.weights import Parameter, plan_placements, write_weights
from foveate.runtime.bundle import Bundle
from foveate.runtime.manifest import Stage, TensorSpec
from foveate.tools.parity.rounded import in_float32

_NAMES = {dtype: name for name, dtype in DATA_TYPES.items()}
_PREFIX = ".trial-"

Loader = Callable[[], Tensor]


@contextlib.contextmanager
def trial(bundle: Bundle, layers: Sequence[LinearLayer], plan: PrecisionPlan) -> Iterator[Bundle]:
    """The first layout of an fp32 bundle as `plan` has it, for as long as the context is open.

    Graphs, and the weights that are stored another way, stand beside the bundle's own files meanwhile; the
    other weights are the bundle's. The words' table stays fp32: rounding it to half is no part of a kernel.
    """
    stages = next(iter(bundle.manifest.layouts.values()))
    folder = bundle.stage_path(stages[0]).parent
    weights = folder / f"{_PREFIX}weights.bin"
    files = {name: folder / f"{_PREFIX}{name}.onnx" for name in stages}
    try:
        models = {name: ir.load(bundle.stage_path(name)) for name in stages}
        forms = _forms(bundle, layers, plan)
        parameters, loaders = weights_of(models.values())
        own = {name: parameters[name] for name in forms if name in parameters}
        stored, loaders = store(own, loaders, forms, half_table=None)
        placements, _ = plan_placements(stored)
        write_weights(weights, placements, loaders, lambda done: None)
        for name, model in models.items():
            rewrite(model, forms)
            if half := plan.half(stage_of(name)):
                type_graph(model, half)
            in_float32(model)  # GPUs' bfloat16, which no CPU kernel knows
            for value in model.graph.initializers.values():
                if value.const_value is None:
                    point_into(value, placements[str(value.name)], weights)
            ir.save(model, files[name])
        records = {
            name: record.model_copy(update={"file": f"{folder.name}/{files[name].name}"})
            if name in files
            else record
            for name, record in bundle.manifest.stages.items()
        }
        changes: dict[str, object] = {"stages": records}
        if plan.half("decoder") == "float16":
            changes["cache"] = bundle.manifest.cache.model_copy(update={"dtype": "float16"})
            changes["stages"] = {name: _in_half(record) for name, record in records.items()}
        yield Bundle(bundle.path, bundle.manifest.model_copy(update=changes))
    finally:
        for file in (weights, *files.values()):
            file.unlink(missing_ok=True)


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


def bundle_weights(bundle: Bundle) -> dict[str, Loader]:
    """Loaders of the weights of a bundle's first layout, by name."""
    stages = next(iter(bundle.manifest.layouts.values()))
    return weights_of([ir.load(bundle.stage_path(name)) for name in stages])[1]


def _loader(tensor: ir.TensorProtocol) -> Loader:
    return lambda: torch.from_numpy(tensor.numpy().copy())


def _forms(bundle: Bundle, layers: Sequence[LinearLayer], plan: PrecisionPlan) -> dict[str, Form]:
    return plan_forms(plan, layers, bundle.manifest.target)
