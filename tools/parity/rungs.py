"""The rungs of the ladder in order, and how one is run: nothing that goes wrong may look like a pass."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from foveate.tools.parity import lower
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.lower_accuracy import check_loss
from foveate.tools.parity.p0_graphs import check_graphs
from foveate.tools.parity.p1_stages import check_stages
from foveate.tools.parity.p2_indices import check_indices
from foveate.tools.parity.p3_logits import check_logits
from foveate.tools.parity.p4_tokens import check_tokens
from foveate.tools.parity.p5_accuracy import check_accuracy
from foveate.tools.parity.report import Check, Rung, Status


@dataclass(frozen=True)
class RungSpec:
    """A rung's name, what it compares, and the checks that it makes."""

    key: str
    title: str
    checks: Callable[[Ladder], Iterator[Check]]


EXACT = (
    RungSpec("P0", "graphs are valid, and as declared", lambda ladder: check_graphs(ladder.written)),
    RungSpec("P1", "stages and layers", check_stages),
    RungSpec("P2", "kept indices", check_indices),
    RungSpec("P3", "pruned logits", check_logits),
    RungSpec("P4", "greedy tokens", check_tokens),
    RungSpec("P5", "task accuracy", check_accuracy),
)

LOWER = (
    EXACT[0],
    RungSpec("P1", "stages, by distance", lower.check_stages),
    RungSpec("P2", "kept indices, by overlap", lower.check_indices),
    RungSpec("P3", "pruned logits, by distance", lower.check_logits),
    RungSpec("P4", "greedy tokens, by agreement", lower.check_tokens),
    RungSpec("P5", "task accuracy against fp32", check_loss),
)
"""For bundles whose linear layers are not in fp32."""


def climb(
    ladder: Ladder, keys: tuple[str, ...], say: Callable[[str], None] = lambda text: None
) -> tuple[Rung, ...]:
    """Run the rungs named in `keys`, lowest first. A rung that breaks off is a failure, with what it said."""
    rungs = EXACT if lower.loosest(ladder.manifest.precision) == "fp32" else LOWER
    return tuple(_run(ladder, spec, say) for spec in rungs if spec.key in keys)


def _run(ladder: Ladder, spec: RungSpec, say: Callable[[str], None]) -> Rung:
    say(f"{spec.key} {spec.title}")
    start = time.perf_counter()
    checks: list[Check] = []
    try:
        checks.extend(spec.checks(ladder))
    except Exception as error:
        # Graphs with a fault may fail in any way; that is the finding, and later rungs still run.
        text = " ".join(str(error).split())[:400]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno}"
        checks.append(Check("the rung broke off", Status.FAILED, f"{type(error).__name__} at {at}: {text}"))
    note = "; ".join(ladder.untested) if spec.key in ("P2", "P3", "P4") else ""
    return Rung(spec.key, spec.title, tuple(checks), time.perf_counter() - start, note)
