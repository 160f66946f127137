"""P5: does the pruned model still answer right? Only where there is a task set: for the built-in model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foveate.pruning.plan import parse_plan
from foveate.tools.demo import METHODS
from foveate.tools.evaluate import Contest, hold_contest, is_demo, sites_of
from foveate.tools.evaluation import Point
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.report import Check, Status
from foveate.tools.parity.tolerances import ACCURACY_GATES, AccuracyGate


def check_accuracy(ladder: Ladder) -> Iterator[Check]:
    """Each site alone, then all: the method's own rule against all tokens, and against random pruning."""
    if not is_demo(ladder.bundle):
        yield Check("accuracy", Status.NOT_APPLICABLE, "no task set for this checkpoint")
        return
    if not ladder.cuts:
        yield Check("accuracy", Status.NOT_APPLICABLE, "the bundle is unpruned, there is nothing to compare")
        return
    settings = ladder.settings
    contest = hold_contest(
        ladder.bundle,
        settings.scenes,
        layout=ladder.layouts[0],
        backend=settings.backend,
        threads=settings.threads,
    )
    places = sites_of(ladder.bundle, "both")
    (full,) = contest.at(places, 1.0)
    for cut in ladder.cuts:
        gate = ACCURACY_GATES.get(cut.method) if _as_shipped(cut.key, cut.method, dict(cut.params)) else None
        yield from _compare(contest, f"{cut.method} at {cut.key}", [cut.key], full, gate)
    if len(places) > 1:
        yield from _compare(contest, "all sites", places, full, None)


def _as_shipped(site: str, method: str, params: dict[str, object]) -> bool:
    """Whether a cut is the demo's own: figures are stated for no other options."""
    shipped = {cut.name: cut for cut in parse_plan(list(METHODS)).cuts}
    return site in shipped and (shipped[site].method, shipped[site].params) == (method, params)


def _compare(
    contest: Contest, name: str, places: Sequence[str], full: Point, gate: AccuracyGate | None
) -> Iterator[Check]:
    """The figures in words; gated where a figure is stated."""
    pruned, drawn = contest.own_rule(places)
    loss, margin = _percent(full) - _percent(pruned), _percent(pruned) - _percent(drawn)
    figures = (
        f"{100 * pruned.kept:.1f} % of the tokens kept, {_percent(pruned):.1f} % right; "
        f"all tokens {_percent(full):.1f} %, random pruning of equal size {_percent(drawn):.1f} %"
    )
    if gate is None:
        text = f"{figures}; no gate is stated for this cut, or for cuts together"
        yield Check(f"{name}: accuracy", Status.NOT_APPLICABLE, text)
        return
    problem = ""
    if loss > gate.loss:
        problem = f"it loses {loss:.1f} points, the limit is {gate.loss:g}"
    elif margin < gate.margin:
        problem = f"it is {margin:.1f} points better than random, the limit is {gate.margin:g}"
    status = Status.FAILED if problem else Status.PASSED
    yield Check(f"{name}: accuracy", status, "; ".join(filter(None, (problem, figures))))


def _percent(point: Point) -> float:
    return 100 * point.accuracy.share
