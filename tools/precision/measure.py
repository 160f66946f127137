"""What a plan does: errors of its layers on what they were given, and how far its logits are from fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from foveate.export.precision import LinearLayer, PrecisionPlan
from foveate.export.precision.sensitivity import Call, kernels_to_measure, layer_errors
from foveate.runtime.backends.onnxruntime import Backend
from foveate.tools.precision.distance import distance
from foveate.tools.precision.probe import Progress, Reading, pipeline_of, read_logits
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


class Distances(NamedTuple):
    """Divergences from fp32 in nats: over all probes, and on the shortest alone."""

    whole: float
    short: float


class Judge:
    """How far plans' logits are from those in fp32.

    Args:
        trials: of the bundle.
        shown: the probes.
        wanted: what comes of each in fp32.
    """

    def __init__(
        self,
        trials: Trials,
        shown: Sequence[Probe],
        wanted: Sequence[Reading],
        threads: int | None,
        progress: Progress,
    ) -> None:
        self._trials, self._shown, self._wanted = trials, shown, wanted
        self._threads, self._progress = threads, progress
        self._short = min(range(len(wanted)), key=lambda i: wanted[i].read)

    def distances(self, plan: PrecisionPlan) -> Distances:
        """Of a plan."""
        got = self._read(plan, self._shown)
        short = _divergence(got[self._short : self._short + 1], [self._wanted[self._short]])
        return Distances(_divergence(got, self._wanted), short)

    def share(self, plan: PrecisionPlan, known: Distances, layers: Iterable[LinearLayer]) -> float:
        """What some layers add to a plan's `known` distance: by how much it shrinks with them in fp32.

        The shortest probe alone is read, and its share is taken for that of all: that is enough to
        tell which layers to look at.
        """
        if not known.short:
            return 0.0
        without = {**plan.kernels, **dict.fromkeys((layer.name for layer in layers), "fp32")}
        got = self._read(replace(plan, kernels=without), [self._shown[self._short]])
        left = _divergence(got, [self._wanted[self._short]])
        return known.whole * (1 - left / known.short)

    def _read(self, plan: PrecisionPlan, shown: Sequence[Probe]) -> list[Reading]:
        self._progress("reading probes", 0, len(shown))
        with self._trials.under(plan) as changed:
            return read_logits(pipeline_of(changed, Backend(self._threads)), shown, self._progress)


def _divergence(got: Sequence[Reading], wanted: Sequence[Reading]) -> float:
    both = (np.concatenate([each.logits for each in readings]) for readings in (got, wanted))
    return distance(*both).divergence
