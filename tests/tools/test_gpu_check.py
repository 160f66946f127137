"""The check of a GPU machine, without one: rows that crash, hang, lack something, are gone on with."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from foveate.runtime.errors import UsageError
from foveate.tools.gpu_check import __main__ as command
from foveate.tools.gpu_check import needs, report, rows
from foveate.tools.gpu_check.check import Check, Choice
from foveate.tools.gpu_check.needs import NEEDS, Need
from foveate.tools.gpu_check.records import Outcome, Report, Row, Status
from foveate.tools.gpu_check.state import NAME, State

JOBS = """
import os, signal, subprocess, sys, time
from foveate.runtime.errors import BackendError
from foveate.tools.gpu_check.records import AbsentError

def well(job, words="fine"):
    job.say("it goes " + words)
    count = job.work / "count"
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
    table = {"columns": ["a"], "rows": [["b|c"]]}
    return {"words": words, "number": 1.5, "remark": "a remark", "table": table}

def makes(job, folder):
    (job.work / folder).mkdir()
    return {}

def typed(job):
    raise BackendError("no such kernel", mend="another one")

def bug(job):
    raise ValueError("a | b")

def crash(job):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def silent(job):
    os._exit(3)

def absent(job):
    raise AbsentError("there is no such thing here")

def hang(job):
    held = job.work / "held"
    words = (
        "import fcntl, pathlib, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "pathlib.Path(sys.argv[1] + '.ready').touch(); time.sleep(60)"
    )
    subprocess.Popen([sys.executable, "-c", words, str(held)])
    time.sleep(60)
"""
MET, UNMET = Need("something", "pass", ""), Need("the moon", "raise OSError('no moon tonight')", "wait")


def row(name: str, function: str = "well", **more: Any) -> Row:
    """A row of the test's own jobs."""
    return Row(name, f"what {name} is", f"own.jobs_of_a_test:{function}", more.pop("seconds", 1.0), **more)


@pytest.fixture(autouse=True)
def _jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path" / "own").mkdir(parents=True)
    (tmp_path / "path" / "own" / "jobs_of_a_test.py").write_text(JOBS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setattr("foveate.tools.gpu_check.check.NEEDS", {"met": MET, "unmet": UNMET})
    monkeypatch.setattr(needs, "NEEDS", {"met": MET, "unmet": UNMET})
    monkeypatch.setattr(report, "NEEDS", {"met": MET, "unmet": UNMET})
    needs.missing.cache_clear()


def check(
    folder: Path,
    asked: Sequence[Row],
    choice: Choice | None = None,
    seconds: float | None = None,
    *,
    fresh: bool = False,
) -> Report:
    """One call."""
    out = folder / "out"
    whole = Check(tuple(asked), out, folder / "work", choice or Choice(), seconds)
    return whole.run(State.open(out, fresh=fresh), lambda outcome: None)


def only(found: Report, name: str) -> Outcome:
    """The outcome of a row."""
    return next(each for each in found.outcomes if each.id == name)


def test_a_row_that_dies_takes_nobody_with_it(tmp_path: Path) -> None:
    names = ("crash", "silent", "typed", "bug", "absent", "well")
    found = check(tmp_path, [row(name, name) for name in names])
    reasons = {each.id: (each.status, each.reason) for each in found.outcomes}
    assert reasons == {
        "crash": (Status.FAIL, "the process died of signal SIGSEGV"),
        "silent": (Status.FAIL, "the process ended with code 3 and no answer"),
        "typed": (Status.FAIL, "no such kernel. To mend it: another one."),
        "bug": (Status.FAIL, "ValueError: a | b"),
        "absent": (Status.NOT_RUN, "there is no such thing here"),
        "well": (Status.PASS, "a remark"),
    }
    assert "last words" in only(found, "crash").tail
    assert "Traceback" in only(found, "bug").tail
    assert (tmp_path / "out" / "logs" / "well.log").read_text().strip() == "it goes fine"
    assert [found.count(each) for each in Status] == [1, 4, 1]


def test_a_row_has_its_time_and_its_children_end_with_it(tmp_path: Path) -> None:
    found = check(tmp_path, [row("hang", "hang", limit=4.0), row("well")])
    assert only(found, "hang").reason == "ended after its limit of 4 s"
    assert only(found, "hang").status is Status.FAIL
    assert only(found, "well").status is Status.PASS
    held = tmp_path / "work" / "held"
    assert held.with_name("held.ready").exists(), "the row had started a process, which held a lock"
    assert freed(held), "what the row started still runs"


def freed(held: Path) -> bool:
    """Whether a lock is given up within ten seconds: it ends with the process that has it."""
    with held.open("r+") as file:
        for _ in range(100):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
            else:
                return True
    return False


def test_a_check_that_is_killed_leaves_no_row_running(tmp_path: Path) -> None:
    """As by the time limit of a batch system: the next call would meet it on the GPU and in its folder."""
    hang = row("hang", "hang", limit=120.0)
    words = (
        "import pathlib; from foveate.tools.gpu_check.records import Row; "
        "from foveate.tools.gpu_check.running import run_row; "
        f"run_row({hang!r}, pathlib.Path({str(tmp_path / 'work')!r}), pathlib.Path({str(tmp_path)!r}), 120)"
    )
    check = subprocess.Popen([sys.executable, "-c", words])
    held = tmp_path / "work" / "held"
    for _ in range(600):
        if held.with_name("held.ready").exists() or check.poll() is not None:
            break
        time.sleep(0.1)
    assert held.with_name("held.ready").exists(), "the row had started a process, which held a lock"
    assert check.poll() is None
    check.kill()
    check.wait()
    assert freed(held), "the row, or what it started, still runs"


def test_what_the_budget_ends_was_not_run_and_is_tried_again(tmp_path: Path) -> None:
    asked = [row("hang", "hang", seconds=1.0, limit=60.0), row("long", seconds=30.0)]
    found = check(tmp_path, asked, seconds=3.0)
    assert [each.status for each in found.outcomes] == [Status.NOT_RUN, Status.NOT_RUN]
    assert "call again" in only(found, "hang").reason
    assert "it takes about 30 s" in only(found, "long").reason
    assert not (tmp_path / "out" / NAME).exists()
    again = check(tmp_path, asked[1:])
    assert only(again, "long").status is Status.PASS


def test_missing_needs_and_rows_that_others_stand_on(tmp_path: Path) -> None:
    asked = [
        row("first", needs=("met", "unmet")),
        row("second", after=("first",)),
        row("third", "typed", needs=("met",)),
        row("fourth", after=("third",)),
    ]
    found = check(tmp_path, asked)
    assert [each.status.value for each in found.outcomes] == ["not run", "not run", "fail", "not run"]
    assert only(found, "first").reason == "this machine lacks the moon"
    assert only(found, "second").reason == "it needs the row first, which has not passed"
    assert found.lacking == {"unmet": "OSError: no moon tonight"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "**missing: the moon** (OSError: no moon tonight). wait" in text
    assert "**0 passed, 1 FAILED, 3 NOT RUN, of 4 rows**" in text


def test_the_next_call_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    asked = [
        row("one", options={"words": "well"}),
        row("two", "makes", makes="made", options={"folder": "made"}),
    ]
    count = tmp_path / "work" / "count"
    assert check(tmp_path, asked).count(Status.PASS) == 2
    assert check(tmp_path, asked).count(Status.PASS) == 2
    assert count.read_text() == "1"
    check(tmp_path, asked, Choice(only=("one",)))
    assert count.read_text() == "2"
    (tmp_path / "work" / "made").rmdir()  # what others stand on is gone: it is made anew
    assert check(tmp_path, asked).count(Status.PASS) == 2
    assert (tmp_path / "work" / "made").is_dir()
    assert count.read_text() == "2"
    (tmp_path / "work" / "made").rmdir()
    assert check(tmp_path, asked, fresh=True).count(Status.PASS) == 2
    assert count.read_text() == "3"


def test_a_failure_is_kept_and_another_machines_results_are_not(tmp_path: Path) -> None:
    check(tmp_path, [row("bug", "bug")])
    state = State.open(tmp_path / "out")
    kept = state.outcomes["bug"]
    assert state.kept(row("bug"), kept.machine, tmp_path) == kept
    assert state.kept(row("bug"), "another", tmp_path) is None
    again = check(tmp_path, [row("bug", "bug")])
    assert only(again, "bug").when == kept.when


def test_rows_are_chosen_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    asked = [row("a-1"), row("a-2"), row("b-1", after=("a-1",))]
    found = check(tmp_path, asked, Choice(only=("a-",), skip=("a-2",)))
    assert [each.status.value for each in found.outcomes] == ["pass", "not run", "not run"]
    assert only(found, "a-2").reason == "left out on the command line"
    with pytest.raises(UsageError, match="no such row"):
        check(tmp_path, asked, Choice(skip=("c",)))


def test_a_row_left_out_serves_others_by_what_it_once_made(tmp_path: Path) -> None:
    asked = [row("make", "makes", makes="made", options={"folder": "made"}), row("use", after=("make",))]
    (tmp_path / "work" / "made").mkdir(parents=True)
    found = check(tmp_path, asked, Choice(skip=("make",)))
    assert [each.status.value for each in found.outcomes] == ["not run", "pass"]


def test_the_report_says_everything_and_can_be_read_again(tmp_path: Path) -> None:
    found = check(tmp_path, [row("well"), row("crash", "crash")])
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert Report.model_validate(written) == found.model_copy(update={"created": written["created"]})
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| `well` | what well is | pass |" in text
    assert "a remark; words fine; number 1.5" in text
    assert "| b\\|c |" in text
    assert "## crash failed" in text
    assert "last words" in text
    assert str(tmp_path) not in text
    for fact in ("cores", "Python", "onnxruntime"):
        assert fact in text


def test_a_state_of_somebody_else_is_refused(tmp_path: Path) -> None:
    for text in ("{", '{"format": 99, "outcomes": []}', '{"format": 1, "outcomes": [{}]}'):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(UsageError, match="cannot be gone on with"):
            State.open(tmp_path)
        assert State.open(tmp_path, fresh=True).outcomes == {}


def test_the_rows_make_sense() -> None:
    ids = [each.id for each in rows.ROWS]
    assert len(set(ids)) == len(ids)
    for place, each in enumerate(rows.ROWS):
        assert set(each.needs) <= set(NEEDS)
        assert set(each.after) <= set(ids[:place]), f"{each.id} stands before what it needs"
        module, _, function = each.call.partition(":")
        assert callable(
            getattr(__import__(f"foveate.tools.gpu_check.jobs.{module}", fromlist=["_"]), function)
        )
        # One call of a lent machine is ten minutes: no row may need more.
        assert each.seconds <= 540
        assert each.most <= 600


def test_the_command_lists_runs_and_leaves_with_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (row("well"), row("bug", "bug"), row("moon", needs=("unmet",)))
    monkeypatch.setattr(command, "ROWS", asked)
    monkeypatch.setattr(command, "NEEDS", {"met": MET, "unmet": UNMET})
    assert command.main(["--list"]) == 0
    assert "3 rows" in capsys.readouterr().out
    out = str(tmp_path / "out")
    assert command.main([out, "--skip", "bug"]) == 0
    said = capsys.readouterr().out
    assert "!! 2 ROWS WERE NOT RUN" in said
    assert command.main([out]) == 1
    assert "FAIL     bug" in capsys.readouterr().out
    assert command.main([out, "--only", "nobody"]) == 2
    assert "there is no such row" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command.main([str(tmp_path / "file")]) == 2, "1 would mean that a row failed"
    assert "the report cannot be written to" in capsys.readouterr().err
    for seconds in ("-1", "nan", "soon"):
        with pytest.raises(SystemExit) as left:
            command.main([out, f"--seconds={seconds}"])
        assert left.value.code == 2


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "foveate.tools.gpu_check", str(tmp_path / "out"), "--only", "doctor"]
    run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "pass     doctor" in run.stdout
    written = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert written.count(Status.PASS) == 1
