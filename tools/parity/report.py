"""What the ladder found: checks, rungs, the whole report; as JSON and as tables."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from foveate.tools.parity.compare import Difference

if TYPE_CHECKING:
    from rich.console import Console


class Status(str, enum.Enum):
    """Outcome of a check or a rung. Only `passed` is a pass; `cannot run` fails the ladder, loudly."""

    PASSED = "passed"
    FAILED = "failed"
    CANNOT_RUN = "cannot run"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Place:
    """Where two computations part: stage, layer in it (None: the stage's output), index in the array."""

    stage: str
    layer: int | None = None
    index: tuple[int, ...] | None = None

    def __str__(self) -> str:
        parts = [f"stage {self.stage}"]
        parts += [] if self.layer is None else [f"layer {self.layer}"]
        parts += [] if self.index is None else [f"index {list(self.index)}"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Check:
    """One comparison. `largest` and `mean` are differences where numbers were compared, else None."""

    name: str
    status: Status
    detail: str = ""
    where: Place | None = None
    largest: float | None = None
    mean: float | None = None

    @classmethod
    def of(cls, name: str, difference: Difference, stage: str, layer: int | None = None) -> Check:
        """The check that a difference amounts to."""
        place = Place(stage, layer, difference.first)
        if difference.agrees:
            return cls(name, Status.PASSED, "", None, difference.largest, difference.mean)
        return cls(name, Status.FAILED, difference.problem, place, difference.largest, difference.mean)

    @classmethod
    def that(cls, name: str, holds: bool, otherwise: str, where: Place | None = None) -> Check:
        """A plain statement: passed when it holds, failed with `otherwise` when not."""
        return cls(name, Status.PASSED) if holds else cls(name, Status.FAILED, otherwise, where)

    @classmethod
    def missing(cls, name: str, why: str) -> Check:
        """A check that ought to run and cannot."""
        return cls(name, Status.CANNOT_RUN, why)


@dataclass(frozen=True)
class Rung:
    """One rung; its checks are in the order of the computation: the first failure is where it starts."""

    key: str
    title: str
    checks: tuple[Check, ...]
    seconds: float = 0.0
    note: str = ""

    @property
    def status(self) -> Status:
        """The worst of its checks; a rung without checks could not run."""
        found = {check.status for check in self.checks}
        for status in (Status.FAILED, Status.CANNOT_RUN, Status.PASSED, Status.NOT_APPLICABLE):
            if status in found:
                return status
        return Status.CANNOT_RUN

    @property
    def first_failure(self) -> Check | None:
        """The first check that failed, or could not run."""
        bad = (Status.FAILED, Status.CANNOT_RUN)
        return next((check for check in self.checks if check.status in bad), None)

    @property
    def largest(self) -> float | None:
        """The largest difference between numbers among its checks."""
        values = [check.largest for check in self.checks if check.largest is not None]
        return max(values, default=None)


@dataclass(frozen=True)
class ParityReport:
    """The whole ladder for one bundle against one checkpoint."""

    bundle: str
    checkpoint: str
    rungs: tuple[Rung, ...]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no rung failed, and none that applies could not run."""
        return bool(self.rungs) and all(
            rung.status in (Status.PASSED, Status.NOT_APPLICABLE) for rung in self.rungs
        )

    @property
    def first_divergence(self) -> tuple[str, Check] | None:
        """The lowest rung with a failure, and its first failed check."""
        for rung in self.rungs:
            if rung.first_failure is not None:
                return rung.key, rung.first_failure
        return None

    def rung(self, key: str) -> Rung:
        """The rung named `P0` … `P5`. Raises KeyError."""
        return {rung.key: rung for rung in self.rungs}[key]

    def summary(self) -> dict[str, Any]:
        """What goes into the bundle's manifest: one line for each rung."""
        return {
            rung.key: {
                "status": rung.status.value,
                "checks": len(rung.checks),
                "largest": _plain(rung.largest),
            }
            for rung in self.rungs
        }

    def to_json(self) -> dict[str, Any]:
        """The full report as plain JSON values."""
        first = self.first_divergence
        return {
            "passed": self.passed,
            "bundle": self.bundle,
            "checkpoint": self.checkpoint,
            "first_divergence": None if first is None else {"rung": first[0], "check": _check_json(first[1])},
            "rungs": [_rung_json(rung) for rung in self.rungs],
            "versions": self.versions,
        }


def _rung_json(rung: Rung) -> dict[str, Any]:
    return {
        "key": rung.key,
        "title": rung.title,
        "status": rung.status.value,
        "seconds": round(rung.seconds, 3),
        "note": rung.note,
        "checks": [_check_json(check) for check in rung.checks],
    }


def _check_json(check: Check) -> dict[str, Any]:
    document = asdict(check)
    document["status"] = check.status.value
    document["largest"], document["mean"] = _plain(check.largest), _plain(check.mean)
    return document


def _plain(value: float | None) -> float | str | None:
    """JSON has no infinity."""
    return value if value is None or abs(value) != float("inf") else "infinite"


def print_report(report: ParityReport, console: Console, verbose: bool = False) -> None:
    """The ladder as a table; below it each failure, and where the first divergence is."""
    console.print(_table(report))
    for rung in report.rungs:
        shown = rung.checks if verbose else [c for c in rung.checks if c.status is not Status.PASSED]
        for check in shown:
            console.print(_line(rung.key, check), soft_wrap=True, markup=False, style=_STYLE[check.status])
    first = report.first_divergence
    if first is not None:
        place = f" at {first[1].where}" if first[1].where else ""
        console.print(f"first divergence: {first[0]}{place}", style="bold red", markup=False, soft_wrap=True)


_STYLE = {
    Status.PASSED: "dim",
    Status.FAILED: "red",
    Status.CANNOT_RUN: "bold yellow",
    Status.NOT_APPLICABLE: "yellow",
}


def _line(key: str, check: Check) -> str:
    size = "" if check.largest is None else f" (largest difference {check.largest:.2g})"
    place = f" [{check.where}]" if check.where else ""
    detail = f": {check.detail}" if check.detail else ""
    return f"{key} {check.status.value}: {check.name}{size}{place}{detail}"


def _table(report: ParityReport) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(
        title="Parity ladder", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name in ("rung", "what", "checks", "largest difference", "seconds", "result"):
        table.add_column(
            name, justify="right" if name in ("checks", "largest difference", "seconds") else "left"
        )
    for rung in report.rungs:
        largest = "" if rung.largest is None else f"{rung.largest:.2g}"
        good = sum(check.status is Status.PASSED for check in rung.checks)
        counts = f"{good}/{len(rung.checks)}"
        result = f"[{_STYLE[rung.status].replace('dim', 'green')}]{rung.status.value}[/]"
        table.add_row(rung.key, rung.title, counts, largest, f"{rung.seconds:.1f}", result)
    return table
