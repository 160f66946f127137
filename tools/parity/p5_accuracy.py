"""P5: does the pruned model still answer right? Only where there is a task set: for the built-in model."""

from __future__ import annotations

from collections.abc import Iterator

from foveate.tools import evaluate
from foveate.tools.evaluate import OWN_RULE, RANDOM, Point
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.report import Check, Status
from foveate.tools.parity.tolerances import ACCURACY_LOSS, RANDOM_MARGIN


def check_accuracy(ladder: Ladder) -> Iterator[Check]:
    """The method's own rule against all tokens, and against random pruning of equal size."""
    if not evaluate.is_demo(ladder.bundle):
        yield Check("accuracy", Status.NOT_APPLICABLE, "no task set for this checkpoint")
        return
    if not ladder.plan:
        yield Check("accuracy", Status.NOT_APPLICABLE, "the bundle is unpruned, there is nothing to compare")
        return
    found = evaluate.evaluate(
        ladder.bundle.path,
        [1.0],
        scenes=ladder.settings.scenes,
        layout=ladder.layouts[0],
        threads=ladder.settings.threads,
    )
    full, pruned = found.point("method", "1"), found.point("method", OWN_RULE)
    drawn = found.point(RANDOM, OWN_RULE)
    loss, gain = _percent(full) - _percent(pruned), _percent(pruned) - _percent(drawn)
    kept = f"{100 * pruned.kept:.1f} % of the visual tokens kept"
    name = f"accuracy with all tokens {_percent(full):.1f} %, pruned {_percent(pruned):.1f} %"
    text = f"it loses {loss:.1f} points, more than {ACCURACY_LOSS:g}, with {kept}"
    yield Check.that(f"{name} ({kept})", loss <= ACCURACY_LOSS, text)
    text = f"{_percent(drawn):.1f} % with random pruning of equal size: not {RANDOM_MARGIN:g} points less"
    yield Check.that(f"random pruning of equal size {_percent(drawn):.1f} %", gain >= RANDOM_MARGIN, text)


def _percent(point: Point) -> float:
    return 100 * point.accuracy.share
