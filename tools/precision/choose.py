"""Decides an export's precision layer by layer: errors of layers first, then what they do to the logits.

export_model(checkpoint, output, dtype="int8", choose=chooser())
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from foveate.export.precision import AUTO, STAGES, LinearLayer, PrecisionPlan, nothing_to_choose
from foveate.export.precision.sensitivity import (
    chain,
    choose_kernels,
    kernels_to_measure,
    largest,
    layer_errors,
    next_better,
)
from foveate.export.precision.words import MEASURED, SHORTEST_BLOCK, WEIGHT_ONLY
from foveate.runtime.backends.onnxruntime import Backend
from foveate.runtime.bundle import Bundle
from foveate.tools.precision.auto import free_memory, measure_machine, resolve
from foveate.tools.precision.distance import distance
from foveate.tools.precision.probe import pipeline_of, read_logits, record
from foveate.tools.precision.prompts import Probe, probes
from foveate.tools.precision.trial import bundle_weights, trial

# Mean divergence from fp32 on the probes, in nats, that is let pass; the loosest word of a plan counts.
# On the built-in model plain int8 has 0.002 and loses nothing measurable, int4 has 0.02 and loses 1 to 2
# points where tokens are pruned, 4 bits everywhere 0.04 and 3 points (docs/precision.md).
LIMITS: Final[Mapping[str, float]] = {
    "fp32": 0.0005,
    "fp16": 0.0005,
    "bf16": 0.002,
    "int8": 0.005,
    "fp8": 0.005,
    "int4": 0.015,
}
_GROUPS: Final = 8  # of a stage: runs of blocks whose share in the distance is measured
_BLOCK: Final = re.compile(r"\b(layers|blocks)\.\d+\.")
_ROUNDS: Final = 3
# fp32 weights are in memory about twice while graphs are loaded and packed.
_COPIES: Final = 2.2

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
Chooser = Callable[[Bundle, Sequence[LinearLayer], Mapping[str, str]], PrecisionPlan]


def _silent(*words: object) -> None: ...


@dataclass(frozen=True)
class Settings:
    """How to choose.

    Attributes:
        calibration: folder of pictures; None takes built-in ones.
        measure: look at errors at all; without, every layer gets its stage's kernel.
        threads: of ONNX Runtime.
    """

    calibration: Path | None = None
    measure: bool = True
    threads: int | None = None


def chooser(settings: Settings | None = None, say: Say = _silent, progress: Progress = _silent) -> Chooser:
    """What `export_model` asks for. Raises `InputError` at once for a folder without pictures."""
    chosen = settings or Settings()
    shown = probes(chosen.calibration)

    def choose(bundle: Bundle, layers: Sequence[LinearLayer], words: Mapping[str, str]) -> PrecisionPlan:
        plan = first_plan(words, layers, bundle.manifest.target, chosen.threads)
        if plan.reason:
            say(plan.reason)
        for note in uneven(plan, layers):
            say(note)
        if nothing_to_choose(plan.stages, plan.target):
            return plan
        if not chosen.measure:
            return with_ranges(bundle, layers, plan, shown, chosen.threads, progress)
        if problem := _no_room(layers):
            say(f"no layer was measured, every one gets its stage's kernel: {problem}")
            return replace(plan, reason="; ".join(filter(None, (plan.reason, f"not measured: {problem}"))))
        return measured_plan(bundle, layers, plan, shown, threads=chosen.threads, say=say, progress=progress)

    return choose


def first_plan(
    words: Mapping[str, str], layers: Sequence[LinearLayer], target: str, threads: int | None = None
) -> PrecisionPlan:
    """The plan that words stand for, before any layer is measured; `auto` looks at the machine."""
    if AUTO not in words.values():
        return PrecisionPlan(dict(words), target=target)
    made, reason = resolve(words, layers, measure_machine(target, threads))
    return PrecisionPlan(made, reason=reason, target=target)


def uneven(plan: PrecisionPlan, layers: Sequence[LinearLayer]) -> Iterator[str]:
    """Of each stage, how many layers do not get its word, since their inputs make no whole blocks."""
    for stage, word in plan.stages.items():
        own = [x for x in layers if x.stage == stage and plan.usual(x) in WEIGHT_ONLY]
        if bare := [x for x in own if x.inputs % SHORTEST_BLOCK]:
            yield (
                f"{stage}={word}: {len(bare)} of {len(own)} layers get {plan.spare(bare[0])} instead, "
                f"their inputs are no multiple of {SHORTEST_BLOCK}"
            )


def measured_plan(
    bundle: Bundle,
    layers: Sequence[LinearLayer],
    plan: PrecisionPlan,
    shown: Sequence[Probe],
    *,
    threads: int | None = None,
    say: Say = _silent,
    progress: Progress = _silent,
) -> PrecisionPlan:
    """A plan whose layers are within their limits, and its logits within theirs, as far as that goes."""
    errors, ranges, wanted = measure_errors(bundle, layers, plan, shown, threads, progress)
    plan = choose_kernels(replace(plan, ranges=ranges), layers, errors)
    plan = _unseen(plan, layers)

    def divergence(tried: PrecisionPlan) -> float:
        with trial(bundle, layers, tried) as changed:
            return distance(read_logits(pipeline_of(changed, Backend(threads)), shown), wanted).divergence

    limit = max(LIMITS[plan.word(stage)] for stage in STAGES)
    found = divergence(plan)
    for number in range(_ROUNDS):
        if found <= limit:
            break
        progress("raising precision", number, _ROUNDS)
        plan = _raised(plan, layers, errors, divergence, found, limit)
        found = divergence(plan)
    progress("raising precision", _ROUNDS, _ROUNDS)
    verdict = f"logits diverge by {found:.4f} nats from fp32, limit {limit:g}"
    say(f"{len(plan.kernels)} of {len(layers)} layers deviate from their stage's kernel; {verdict}")
    return replace(plan, reason="; ".join(filter(None, (plan.reason, verdict))))


def with_ranges(
    bundle: Bundle,
    layers: Sequence[LinearLayer],
    plan: PrecisionPlan,
    shown: Sequence[Probe],
    threads: int | None = None,
    progress: Progress = _silent,
) -> PrecisionPlan:
    """The plan with the ranges that its kernels need, and nothing chosen."""
    fixed = [layer for layer in layers if plan.kernel(layer) in MEASURED]
    if not fixed:
        return plan
    calls, _ = record(bundle, fixed, shown, threads=threads, progress=progress)
    return _unseen(replace(plan, ranges={name: largest(each) for name, each in calls.items()}), layers)


def _unseen(plan: PrecisionPlan, layers: Sequence[LinearLayer]) -> PrecisionPlan:
    """The plan with the spare kernel for layers that no probe went through: they have no range."""
    bare = [x for x in layers if plan.kernel(x) in MEASURED and x.name not in plan.ranges]
    return replace(plan, kernels={**plan.kernels, **{x.name: plan.spare(x) for x in bare}})


def measure_errors(
    bundle: Bundle,
    layers: Sequence[LinearLayer],
    plan: PrecisionPlan,
    shown: Sequence[Probe],
    threads: int | None = None,
    progress: Progress = _silent,
) -> tuple[dict[str, dict[str, float]], dict[str, float], np.ndarray]:
    """Errors of layers in fp32's place, by layer name and kernel; the largest magnitude that each layer was
    given, by name; and the logits `[rows, v]` in fp32.

    A layer's kernels are its stage's and the better ones.
    """
    low = [layer for layer in layers if plan.kernel(layer) != "fp32"]
    calls, logits = record(bundle, low, shown, threads=threads, progress=progress)
    weights = bundle_weights(bundle)
    found = {
        layer.name: layer_errors(calls[layer.name], weights[layer.weight](), kernels_to_measure(layer, plan))
        for layer in low
        if layer.name in calls and layer.weight in weights
    }
    return found, {name: largest(each) for name, each in calls.items()}, logits


def _raised(
    plan: PrecisionPlan,
    layers: Sequence[LinearLayer],
    errors: Mapping[str, Mapping[str, float]],
    divergence: Callable[[PrecisionPlan], float],
    found: float,
    limit: float,
) -> PrecisionPlan:
    """The plan with better kernels for the runs of layers that the distance comes from.

    A layer's own error says nothing about what the model makes of it: early layers count for more. So each
    run of layers is put into fp32 in turn. The most harmful go up until what is left ought to pass.
    """
    shares = []
    for group in _groups([layer for layer in layers if plan.kernel(layer) != "fp32"]):
        without = {**plan.kernels, **dict.fromkeys((layer.name for layer in group), "fp32")}
        shares.append((found - divergence(replace(plan, kernels=without)), group))
    kernels, left = dict(plan.kernels), found
    for share, group in sorted(shares, key=lambda pair: -pair[0]):
        if left <= limit:
            break
        for layer in group:
            kernels[layer.name] = next_better(chain(layer, plan), errors.get(layer.name, {}))
        left -= max(share, 0.0)
    return replace(plan, kernels=kernels)


def _groups(layers: Sequence[LinearLayer]) -> list[list[LinearLayer]]:
    """Runs of consecutive blocks of one stage; a block's products stay together."""
    groups: list[list[LinearLayer]] = []
    for stage in STAGES:
        blocks: dict[str, list[LinearLayer]] = {}
        for layer in layers:
            if layer.stage == stage:
                found = _BLOCK.search(layer.name)
                blocks.setdefault(found[0] if found else layer.name, []).append(layer)
        own = list(blocks.values())
        size = max(1, -(-len(own) // _GROUPS))
        groups += [[x for block in own[i : i + size] for x in block] for i in range(0, len(own), size)]
    return groups


def _no_room(layers: Sequence[LinearLayer]) -> str:
    """Why the fp32 graphs cannot be run here; empty where they can."""
    need = _COPIES * 4 * float(np.sum([layer.inputs * layer.outputs for layer in layers], dtype=np.float64))
    free = free_memory()
    if free is None or need <= free:
        return ""
    return f"the graphs in fp32 need {need / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
