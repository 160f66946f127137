"""Runs one row in a process group of its own, so that its crash, its hang or its greed ends nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from foveate.tools.gpu_check.records import Outcome, Row, Status

TAIL: Final = 6000
"""Characters of a row's output that the report keeps."""


@dataclass(frozen=True)
class Run:
    """How a process ended: `code` is None where it was ended here, for want of time."""

    code: int | None
    seconds: float
    answer: dict[str, Any] | None
    tail: str


def run_row(row: Row, work: Path, logs: Path, left: float, python: str = sys.executable) -> Outcome:
    """The outcome of a row that may be run; its whole output goes into `logs`.

    `left` is what the budget has; a row that is ended by it, and not by its own limit, was not run.
    """
    limit = min(row.most, left)
    words = [python, "-m", "foveate.tools.gpu_check.child", json.dumps(asdict(row)), str(work)]
    run = _spawn(words, logs / f"{row.id}.log", limit)
    status, reason = _judge(run, row, limit < row.most)
    answer = run.answer or {}
    return Outcome(
        id=row.id,
        title=row.title,
        status=status,
        reason=reason,
        figures=answer.get("figures", {}),
        seconds=round(run.seconds, 2),
        tail=run.tail,
    )


def _judge(run: Run, row: Row, by_budget: bool) -> tuple[Status, str]:
    if run.code is None:
        if by_budget:
            return Status.NOT_RUN, f"the time of this call ended after {run.seconds:.0f} s; call again"
        return Status.FAIL, f"ended after its limit of {row.most:.0f} s"
    if run.answer is None:
        return Status.FAIL, _death(run.code)
    if run.answer.get("absent"):
        return Status.NOT_RUN, str(run.answer["absent"])
    if run.answer.get("error"):
        return Status.FAIL, str(run.answer["error"])
    if run.code:
        return Status.FAIL, f"it answered, and then {_death(run.code)}"
    return Status.PASS, str(run.answer.get("remark", ""))


def _death(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"the process died of signal {name}"
    return f"the process ended with code {code} and no answer"


def _spawn(words: list[str], log: Path, limit: float) -> Run:
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="foveate-gpu-check-") as folder:
        answer = Path(folder) / "answer.json"
        with log.open("w", encoding="utf-8", errors="replace") as out:
            process = subprocess.Popen(
                [*words, str(answer)],
                stdin=subprocess.PIPE,  # held open: the row ends itself when this process is gone
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            code: int | None = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=limit)
            _end_group(process)
        seconds = time.monotonic() - start
        text = log.read_text(encoding="utf-8", errors="replace")
        return Run(code, seconds, _read(answer), text[-TAIL:])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """The row's process, and whatever it started and left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
