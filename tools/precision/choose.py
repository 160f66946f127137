"""Decides an export's precision layer by layer: errors of layers first, then what they do to the logits.

export_model(checkpoint, output, dtype="int8", choose=chooser())
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from foveate.export.precision import AUTO, STAGES, LinearLayer, PrecisionPlan, nothing_to_choose
from foveate.export.precision.sensitivity import (
    chain,
    choose_kernels,
    largest,
    next_better,
)
from foveate.export.precision.words import MEASURED, SHORTEST_BLOCK, WEIGHT_ONLY
from foveate.runtime.bundle import Bundle
from foveate.tools.precision.auto import free_memory, measure_machine, resolve
from foveate.tools.precision.harm import Group, groups_of, most_harmful
from foveate.tools.precision.measure import Errors, Judge, measure_errors
from foveate.tools.precision.probe import record
from foveate.tools.precision.prompts import Probe, probes
from foveate.tools.precision.trial import Trials

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
    """Of each stage, how many layers do not get its word, since their inputs make no whole blocks.

    Where that is all of them the export itself says so (`foveate.export.precision.settle`).
    """
    for stage, word in plan.stages.items():
        own = [x for x in layers if x.stage == stage and plan.usual(x) in WEIGHT_ONLY]
        bare = [x for x in own if x.inputs % SHORTEST_BLOCK]
        if 0 < len(bare) < len(own):
            yield (
                f"{stage}={word}: {len(bare)} of {len(own)} layers get {plan.spare(stage)} instead, "
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
    low = [layer for layer in layers if plan.kernel(layer) != "fp32"]
    calls, wanted = record(bundle, low, shown, threads=threads, progress=progress)
    with Trials(bundle, layers, progress) as trials:
        errors = measure_errors(calls, trials.loaders, low, plan, progress)
        plan = replace(plan, ranges={name: largest(each) for name, each in calls.items()})
        plan = _unseen(choose_kernels(plan, layers, errors), layers)
        judge = Judge(trials, shown, wanted, threads, progress)
        limit = max(LIMITS[plan.word(stage)] for stage in STAGES)
        plan, found = _raised(plan, layers, errors, judge, limit, progress)
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
    return replace(plan, kernels={**plan.kernels, **{x.name: plan.spare(x.stage) for x in bare}})


def _raised(
    plan: PrecisionPlan,
    layers: Sequence[LinearLayer],
    errors: Errors,
    judge: Judge,
    limit: float,
    progress: Progress,
) -> tuple[PrecisionPlan, float]:
    """The plan with better kernels for the runs of layers that the distance comes from, and its distance.

    A layer's own error says nothing about what the model makes of it: early layers count for more. The most
    harmful runs go up until what is left ought to pass; all probes say whether it does.
    """
    found = judge.divergence(plan)
    for number in range(_ROUNDS):
        if found <= limit:
            break
        progress("raising precision", number, _ROUNDS)
        left, kernels = found, dict(plan.kernels)
        for share, group in _ranked(plan, layers, judge, found, progress):
            left -= share
            for layer in group:
                kernels[layer.name] = next_better(chain(layer, plan), errors.get(layer.name, {}))
            if left <= limit:
                break
        progress("looking for what harms", 1, 1)
        plan = replace(plan, kernels=kernels)
        found = judge.divergence(plan)
    progress("raising precision", _ROUNDS, _ROUNDS)
    return plan, found


def _ranked(
    plan: PrecisionPlan,
    layers: Sequence[LinearLayer],
    judge: Judge,
    known: float,
    progress: Progress,
) -> Iterator[tuple[float, Group]]:
    """Runs of a plan's layers with what each adds to its distance, the most harmful first."""
    groups = groups_of([layer for layer in layers if plan.kernel(layer) != "fp32"])
    tried = itertools.count()

    def share(some: Sequence[Group]) -> float:
        progress("looking for what harms", next(tried), max(1, len(groups) - 1))
        return judge.share(plan, known, itertools.chain.from_iterable(some))

    return most_harmful(groups, known, share)


def _no_room(layers: Sequence[LinearLayer]) -> str:
    """Why the fp32 graphs cannot be run here; empty where they can."""
    need = _COPIES * 4 * float(np.sum([layer.inputs * layer.outputs for layer in layers], dtype=np.float64))
    free = free_memory()
    if free is None or need <= free:
        return ""
    return f"the graphs in fp32 need {need / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
