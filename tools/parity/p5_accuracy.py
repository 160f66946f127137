"""P5: does the pruned model still answer right? Only where there is a task set."""

from __future__ import annotations

from collections.abc import Iterator

from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.report import Check, Status


def check_accuracy(ladder: Ladder) -> Iterator[Check]:
    """Pruned against full on the scenes of the built-in model."""
    yield Check("accuracy", Status.NOT_APPLICABLE, "no task set for this checkpoint")
