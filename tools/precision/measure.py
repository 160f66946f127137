"""What a plan does: errors of its layers on what they were given, and how far its logits are from fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from foveate.export.precision import LinearLayer, PrecisionPlan
from foveate.export.precision.sensitivity import Call, kernels_to_measure, layer_errors
from foveate.runtime.backends.onnxruntime import Backend
from foveate.tools.precision.distance import distance
from foveate.tools.precision.probe import Progress, pipeline_of, read_logits
from foveate.tools.precision.prompts import Probe
from foveate.tools.precision.trial import Trials

Errors = Mapping[str, Mapping[str, float]]
"""Relative errors of layers in fp32's place, by layer name and kernel."""


class LayerErrors(Mapping[str, float]):
    """Errors of a layer by kernel, each measured when it is first asked for: few layers need a second one."""

    def __init__(self, calls: Sequence[Call], load: Callable[[], Tensor], kernels: Iterable[str]) -> None:
        self._calls, self._load = calls, load
        self._found: dict[str, float | None] = dict.fromkeys(kernels)

    def __getitem__(self, kernel: str) -> float:
        found = self._found[kernel]
        if found is None:
            found = self._found[kernel] = layer_errors(self._calls, self._load(), (kernel,))[kernel]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def measure_errors(
    calls: Mapping[str, Sequence[Call]],
    loaders: Mapping[str, Callable[[], Tensor]],
    layers: Sequence[LinearLayer],
    plan: PrecisionPlan,
    progress: Progress,
) -> dict[str, LayerErrors]:
    """Errors of layers that were given something: under the plan's kernel now, under better ones on demand.

    `loaders` are by name of the weight.
    """
    seen = [layer for layer in layers if layer.name in calls and layer.weight in loaders]
    found = {}
    for number, layer in enumerate(seen):
        progress("measuring layers", number, len(seen))
        kernels = kernels_to_measure(layer, plan)
        found[layer.name] = LayerErrors(calls[layer.name], loaders[layer.weight], kernels)
        if kernels:
            found[layer.name][kernels[0]]  # is kept
    progress("measuring layers", len(seen), len(seen))
    return found


class Judge:
    """How far plans' logits are from those in fp32.

    Args:
        trials: of the bundle.
        shown: the probes.
        wanted: logits `[rows, v]` of all of them in fp32.
    """

    def __init__(
        self,
        trials: Trials,
        shown: Sequence[Probe],
        wanted: np.ndarray,
        threads: int | None,
        progress: Progress,
    ) -> None:
        self._trials, self._shown, self._wanted = trials, shown, wanted
        self._threads, self._progress = threads, progress

    def divergence(self, plan: PrecisionPlan) -> float:
        """Of a plan, in nats."""
        self._progress("reading probes", 0, len(self._shown))
        with self._trials.under(plan) as changed:
            got = read_logits(pipeline_of(changed, Backend(self._threads)), self._shown, self._progress)
        return distance(got, self._wanted).divergence

    def share(self, plan: PrecisionPlan, known: float, layers: Iterable[LinearLayer]) -> float:
        """What some layers add to a plan's `known` divergence: by how much it shrinks with them in fp32.

        All probes are read: on one of the four, other runs of the built-in model's blocks seemed the worst.
        """
        without = {**plan.kernels, **dict.fromkeys((layer.name for layer in layers), "fp32")}
        return known - self.divergence(replace(plan, kernels=without))
