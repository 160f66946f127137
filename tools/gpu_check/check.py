"""The loop over the rows: what was done before, what cannot be run, what there is time for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from foveate.runtime.errors import UsageError
from foveate.tools.gpu_check import facts as machine_facts
from foveate.tools.gpu_check import report
from foveate.tools.gpu_check.needs import NEEDS, missing
from foveate.tools.gpu_check.records import Outcome, Report, Row, Status
from foveate.tools.gpu_check.running import run_row
from foveate.tools.gpu_check.state import State

Tell = Callable[[Outcome], None]


@dataclass(frozen=True)
class Choice:
    """Which rows are wanted, by ids or beginnings of ids; `only` rows run even if they have run before."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def require_known(self, rows: Sequence[Row]) -> None:
        """Raises `UsageError` for a word that chooses nothing."""
        for word in (*self.only, *self.skip):
            if not any(row.id.startswith(word) for row in rows):
                raise UsageError(
                    "there is no such row",
                    found=word,
                    wanted="an id, or the beginning of some",
                    mend="--list shows all rows",
                )

    def names(self, row: Row) -> bool:
        """Whether a row was asked for by name."""
        return any(row.id.startswith(word) for word in self.only)

    def skips(self, row: Row) -> bool:
        """Whether it is to be left out."""
        left = bool(self.only) and not self.names(row)
        return left or any(row.id.startswith(word) for word in self.skip)


@dataclass
class Check:
    """One call: `rows` in their order, `seconds` for all of them together (None: as long as it takes).

    Rows, state and report are on the disk after each row, so that a call that is ended has lost one at most.
    """

    rows: tuple[Row, ...]
    out: Path
    work: Path
    choice: Choice
    seconds: float | None = None
    _found: dict[str, Outcome] = field(default_factory=dict, init=False)
    _lacking: dict[str, str] = field(default_factory=dict, init=False)

    def run(self, state: State, tell: Tell, begin: Tell = lambda row: None) -> Report:
        """Run what can be run, row by row. Raises `UsageError`."""
        self.choice.require_known(self.rows)
        facts = machine_facts.examine()
        fingerprint, start = machine_facts.fingerprint(facts), time.monotonic()
        for row in self.rows:
            left = float("inf") if self.seconds is None else self.seconds - (time.monotonic() - start)
            outcome = self._one(row, state, fingerprint, left, begin)
            self._found[row.id] = outcome
            tell(outcome)
            report.write(self._report(facts, fingerprint, state), self.out)
        return self._report(facts, fingerprint, state)

    def _one(self, row: Row, state: State, fingerprint: str, left: float, begin: Tell) -> Outcome:
        kept = state.kept(row, fingerprint, self.work)
        if kept is not None and not self.choice.names(row):
            return kept
        if self.choice.skips(row):
            return _not_run(row, "left out on the command line")
        if why := self._obstacle(row, left):
            return _not_run(row, why)
        begin(_not_run(row, "running"))
        outcome = run_row(row, self.work, self.out / "logs", left)
        stamp = {"machine": fingerprint, "when": _now(), "code": machine_facts.code()}
        stamped = outcome.model_copy(update=stamp)
        if stamped.status is not Status.NOT_RUN:
            state.put(stamped)
        return stamped

    def _obstacle(self, row: Row, left: float) -> str:
        """Why a row cannot be run now; empty if it can."""
        for name in row.needs:
            if said := missing(name):
                self._lacking[name] = said
                return f"this machine lacks {NEEDS[name].what}"
        for name in row.after:
            if self._found[name].status is not Status.PASS and not self._made_before(name):
                return f"it needs the row {name}, which has not passed"
        if left < row.seconds:
            return f"no time left in this call: it takes about {row.seconds:.0f} s; call again"
        return ""

    def _made_before(self, name: str) -> bool:
        """Whether a row that was left out this time has left its folder."""
        row = next(each for each in self.rows if each.id == name)
        return self.choice.skips(row) and bool(row.makes) and (self.work / row.makes).exists()

    def _report(self, facts: Mapping[str, Any], fingerprint: str, state: State) -> Report:
        """Rows that this call has not come to yet stand there as earlier calls left them."""
        outcomes = [
            self._found.get(row.id)
            or state.kept(row, fingerprint, self.work)
            or _not_run(row, "not reached yet")
            for row in self.rows
        ]
        return Report(
            created=_now(),
            facts=dict(facts),
            fingerprint=fingerprint,
            lacking=dict(self._lacking),
            outcomes=tuple(outcomes),
        )


def _not_run(row: Row, reason: str) -> Outcome:
    return Outcome(id=row.id, title=row.title, status=Status.NOT_RUN, reason=reason)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
