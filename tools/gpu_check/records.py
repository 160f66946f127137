"""What the check is made of: rows (what there is to do), outcomes (what came of one), the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT: Final = 1


class Status(str, Enum):
    """What became of a row. A row that was not run is never counted as passed."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"


class AbsentError(Exception):
    """A row found that it needs what this machine has not: it was not run, which is no failure."""


@dataclass(frozen=True)
class Row:
    """One thing to find out, run in a process of its own.

    Attributes:
        id: short and unique; `--only` and `--skip` take it, or the beginning of several (`trt-`).
        title: one line of the report.
        call: `module:function`, below `foveate.tools.gpu_check.jobs` if the module has no dot; it is given a
            `Job` and returns figures.
        seconds: what it takes on a data-centre GPU, about; a row is not begun with less time left.
        needs: names of `foveate.tools.gpu_check.needs.NEEDS` that must be there.
        after: ids of rows that have to pass first.
        makes: a folder under the work folder that this row leaves for others; if it is gone it runs anew.
        options: what the function is given besides, so that one function serves several rows.
        limit: seconds after which it is ended and has failed; by default four times `seconds`, from
            four to ten minutes.
    """

    id: str
    title: str
    call: str
    seconds: float
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    makes: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: float | None = None

    @property
    def most(self) -> float:
        """Seconds after which it is ended."""
        return self.limit if self.limit is not None else min(590.0, max(240.0, 4 * self.seconds))


@dataclass(frozen=True)
class Job:
    """What a row's function is given.

    Attributes:
        work: for what is large and can be made again: checkpoints, bundles, engines.
        row: the row.
        say: a line for the row's log.
    """

    work: Path
    row: Row
    say: Callable[[str], None]


class Record(BaseModel):
    """Base: immutable, refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Outcome(Record):
    """What came of one row.

    Attributes:
        reason: why it failed or was not run; for a pass whatever a reader has to know.
        figures: numbers and words that the row found, by name.
        seconds: wall time.
        machine: the fingerprint of the machine it ran on; empty for a row that was not run. `code` is the
            beginning of the hash of the sources then.
        tail: the end of what the row printed.
    """

    id: str
    title: str
    status: Status
    reason: str = ""
    figures: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    machine: str = ""
    code: str = ""
    when: str = ""
    tail: str = ""


class Report(Record):
    """The whole check.

    `facts` is what the machine is and has, `fingerprint` its short form; `lacking` says of every need that is
    not met what its probe said.
    """

    format: Literal[1] = FORMAT
    created: str
    facts: dict[str, Any]
    fingerprint: str
    lacking: dict[str, str] = Field(default_factory=dict)
    outcomes: tuple[Outcome, ...]

    def count(self, status: Status) -> int:
        """How many rows ended so."""
        return sum(each.status is status for each in self.outcomes)
