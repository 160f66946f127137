"""What a plan came to: stages whose layers all stayed finer than their word take the word that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from foveate.export.precision.layers import LinearLayer
from foveate.export.precision.plan import PRECISIONS, PrecisionPlan
from foveate.export.precision.words import SHORTEST_BLOCK, WEIGHT_ONLY
from foveate.runtime.errors import ExportError

_COARSENESS: Final[Mapping[str, int]] = {word: place for place, word in enumerate(PRECISIONS)}


def settle(plan: PrecisionPlan, layers: Iterable[LinearLayer]) -> tuple[PrecisionPlan, tuple[str, ...]]:
    """The same kernels under words that the graphs hold, and a sentence for each word that changed."""
    layers = tuple(layers)
    stages = {stage: _held(plan, stage, layers) for stage in plan.stages}
    notes = tuple(
        f"{stage}={word} was asked for and is {stages[stage]}: {_why_not(plan, stage, layers)}"
        for stage, word in plan.stages.items()
        if stages[stage] != word
    )
    if not notes:
        return plan, ()
    settled = replace(plan, stages=stages, kernels={})
    kernels = {x.name: plan.kernel(x) for x in layers if plan.kernel(x) != settled.usual(x)}
    reason = "; ".join(filter(None, (plan.reason, *notes)))
    return replace(settled, kernels=kernels, reason=reason), notes


def require_taken(plan: PrecisionPlan, layers: Iterable[LinearLayer], asked: Mapping[str, str]) -> None:
    """Raises `ExportError` where no layer at all holds the coarsest word that was asked for, or a coarser.

    `asked` are words by stage; those that name no precision (`auto`) ask for nothing.
    """
    layers = tuple(layers)
    words = [word for word in asked.values() if word in _COARSENESS]
    coarsest = max(words, key=_COARSENESS.__getitem__, default=PRECISIONS[0])
    stages = [stage for stage, word in asked.items() if word == coarsest]
    held = {stage: _held(plan, stage, layers) for stage in stages}
    if any(_COARSENESS[word] >= _COARSENESS[coarsest] for word in held.values()) or not held:
        return
    found = "; ".join(f"{stage} would be {held[stage]}: {_why_not(plan, stage, layers)}" for stage in held)
    instead = ",".join(f"{stage}={word}" for stage, word in held.items())
    measured = ", or --no-measure to keep none of them higher" if plan.measured else ""
    raise ExportError(
        f"no layer of this model takes {coarsest}",
        found=found,
        wanted=f"one layer at least of {', '.join(stages)}",
        mend=f"export with --dtype {instead}, which is what these layers can be{measured}",
    )


def _held(plan: PrecisionPlan, stage: str, layers: Sequence[LinearLayer]) -> str:
    """A stage's word where any layer runs it, or attention and caches do; else the coarsest that one runs."""
    word, spare = plan.word(stage), plan.spare(stage)
    run = {plan.kernel(layer).partition("-")[0] for layer in layers if layer.stage == stage}
    if word in run or _COARSENESS[word] <= _COARSENESS[spare]:
        return word
    return max((*run, spare), key=_COARSENESS.__getitem__)


def _why_not(plan: PrecisionPlan, stage: str, layers: Sequence[LinearLayer]) -> str:
    own = [layer for layer in layers if layer.stage == stage]
    if not own:
        return "none of its layers is large enough"
    if all(plan.usual(x) in WEIGHT_ONLY and x.inputs % SHORTEST_BLOCK for x in own):
        return f"the inputs of its {len(own)} layers are no multiple of {SHORTEST_BLOCK}"
    return f"all of its {len(own)} layers are kept higher"
