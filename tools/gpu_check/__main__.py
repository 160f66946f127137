"""Checks Foveate on a machine with a GPU and writes one report; without one, it says what it could not run.

    python -m foveate.tools.gpu_check OUT
    python -m foveate.tools.gpu_check OUT --seconds 540      # again and again, until nothing is left
    python -m foveate.tools.gpu_check --list
    python -m foveate.tools.gpu_check OUT --only trt-1-scatter

Every row runs in a process of its own. OUT gets report.json, report.md, a log for each row, and state.json,
by which the next call goes on where this one ended. Nothing is downloaded: models are drawn on the spot.

Ends with 0 if nothing failed (rows that were not run are counted and named, and are no success), with 1 if a
row failed, with 2 for a wrong option.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from foveate.runtime.errors import FoveateError, UsageError
from foveate.tools.cli.output import show_error
from foveate.tools.gpu_check import report
from foveate.tools.gpu_check.check import Check, Choice
from foveate.tools.gpu_check.needs import NEEDS
from foveate.tools.gpu_check.records import Outcome, Report, Status
from foveate.tools.gpu_check.rows import ROWS
from foveate.tools.gpu_check.state import State


def main(words: Sequence[str] | None = None) -> int:
    """The exit code."""
    given = _parser().parse_args(words)
    if given.list:
        _list()
        return 0
    work = given.work or given.out / "work"
    choice = Choice(tuple(given.only), tuple(given.skip))
    try:
        _require_folder(given.out)
        check = Check(ROWS, given.out, work, choice, given.seconds)
        found = check.run(State.open(given.out, fresh=given.fresh), _tell, _begin)
    except FoveateError as error:
        show_error(error)
        return error.exit_code
    _close(found, given.out)
    return 1 if found.count(Status.FAIL) else 0


def _require_folder(out: Path) -> None:
    """Makes the report's folder. Raises `UsageError` where there can be none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the report cannot be written to {out}", found=error.strerror or "") from error


def _seconds(text: str) -> float:
    """A time in seconds; `nan` is none."""
    seconds = float(text)
    if not seconds >= 0:
        raise ValueError
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m foveate.tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path("gpu-check"), help="the report's folder")
    parser.add_argument("--list", action="store_true", help="show the rows and run nothing")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="an id, or its beginning")
    parser.add_argument("--skip", action="append", default=[], metavar="ROW", help="an id, or its beginning")
    parser.add_argument("--seconds", type=_seconds, help="of all rows together; the next call goes on")
    parser.add_argument(
        "--work", type=Path, help="for checkpoints, bundles, engines: 60 GB (default: OUT/work)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what earlier calls found")
    return parser


def _list() -> None:
    for row in ROWS:
        needs = ", ".join(row.needs) or "nothing"
        after = f"; after {', '.join(row.after)}" if row.after else ""
        print(f"{row.id:<30} {row.seconds:>4.0f} s  {row.title} (needs {needs}{after})")
    print(f"{len(ROWS)} rows, about {sum(row.seconds for row in ROWS) / 60:.0f} minutes where all can run")
    for name, need in NEEDS.items():
        print(f"  {name}: {need.what}")


def _begin(outcome: Outcome) -> None:
    print(f"{'...':<8} {outcome.id:<30} {outcome.title}", flush=True)


def _tell(outcome: Outcome) -> None:
    word = {Status.PASS: "pass", Status.FAIL: "FAIL", Status.NOT_RUN: "NOT RUN"}[outcome.status]
    print(
        f"{word:<8} {outcome.id:<30} {outcome.reason or outcome.title} [{outcome.seconds:.0f} s]", flush=True
    )


def _close(found: Report, out: Path) -> None:
    print(report.summary(found))
    if found.count(Status.NOT_RUN):
        print(f"!! {found.count(Status.NOT_RUN)} ROWS WERE NOT RUN: nothing is known about what they test")
    print(f"wrote {out / 'report.md'} and {out / 'report.json'}")


if __name__ == "__main__":
    sys.exit(main())
