"""The scheduler with its thread, and the soak that runs on it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from many import asks

from foveate.runtime import Budget, GenerateOptions, Pipeline, Scheduler
from foveate.runtime.errors import (
    CancelledError,
    FoveateError,
    InputError,
    ParityError,
    QueueFullError,
    SchedulerClosedError,
    TimedOutError,
    UsageError,
)
from foveate.tools import soak

Pipelines = dict[tuple[str, str], Pipeline]


def test_many_threads(pipelines: Pipelines, alone: Any) -> None:
    which = ("pruned", "fused")
    pool, answers = asks("pruned"), alone(which)
    wrong: list[int] = []
    with Scheduler(pipelines[which], slots=3, queue=4, rows=16) as scheduler:

        def client(first: int) -> None:
            for i in (first, first + 3, first + 6):
                number = i % len(pool)
                handle = scheduler.submit(*pool[number], wait=None)
                streamed = tuple(token.id for token in handle)
                if not streamed == handle.result(wait=60).token_ids == answers[number].token_ids:
                    wrong.append(number)

        threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert scheduler.statistics.finished == scheduler.statistics.submitted == 18


def test_full_queue_and_closing(pipelines: Pipelines, alone: Any) -> None:
    which = ("plain", "fused")
    scheduler = Scheduler(pipelines[which], slots=1, queue=2)
    ask = asks("plain")[2]
    with pytest.raises(QueueFullError, match="at most 2 in all"):
        scheduler.submit_all([ask[:2]] * 3, ask.options, wait=5)
    handles = scheduler.submit_all([ask[:2]] * 2, ask.options)
    with pytest.raises(QueueFullError, match="wait=SECONDS"):
        handles.extend(scheduler.submit(*ask) for _ in range(10))
    handles.append(scheduler.submit(*ask, wait=None))
    scheduler.close()
    assert {handle.result().token_ids for handle in handles} == {alone(which)[2].token_ids}
    scheduler.close()
    with pytest.raises(SchedulerClosedError):
        scheduler.submit(*ask)


def test_what_can_be_known_at_once(pipelines: Pipelines) -> None:
    with Scheduler(pipelines["pruned", "fused"]) as scheduler:
        with pytest.raises(UsageError, match="decoder@2"):
            scheduler.submit("Hi", (), GenerateOptions(keep={"decoder@2": Budget(ratio=0.5)}))
        with pytest.raises(UsageError, match="timeout"):
            scheduler.submit("Hi", timeout=-1.0)
        assert scheduler.statistics.submitted == 0


def test_an_exception_in_the_block_calls_everything_off(pipelines: Pipelines) -> None:
    ask = asks("plain")[2]
    handles = []

    def block() -> None:
        with Scheduler(pipelines["plain", "fused"], slots=1) as scheduler:
            handles.extend(scheduler.submit(*ask) for _ in range(20))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    errors = [handle.error for handle in handles if handle.error]
    assert errors
    assert all(isinstance(error, SchedulerClosedError) for error in errors)
    assert all(handle.done for handle in handles)


def test_waiting_for_a_result_ends(pipelines: Pipelines) -> None:
    with Scheduler(pipelines["plain", "fused"], slots=1) as scheduler:
        handles = [scheduler.submit(*asks("plain")[2]) for _ in range(4)]
        with pytest.raises(TimeoutError):
            handles[-1].result(wait=0.0)
        assert handles[-1].result().token_ids


def test_the_soak_hears_what_is_right_and_what_is_wrong(pipelines: Pipelines) -> None:
    """All kinds of requests through one client; then again, against answers that are not the model's."""
    pipeline = pipelines["pruned", "segmented"]
    pool = soak.answered(pipeline, soak.draw(pipeline.manifest, 5, seed=1, most_tokens=6))
    changed = [replace(known, token_ids=(-1, *known.token_ids[1:])) for known in pool]
    failing = [replace(known, prompt="word " * 10_000) for known in pool]
    with Scheduler(pipeline, slots=3, queue=4, rows=9) as scheduler:
        right, wrong = soak.Tally(), soak.Tally()
        client = soak.Client(scheduler, pool, right, patience=0.01, seed=2)
        for ask in client._kinds:
            ask()
            ask()
        soak.Client(scheduler, changed, wrong, patience=0.01, seed=2)._hear()
        soak.Client(scheduler, failing, wrong, patience=0.01, seed=2)._hear()
    assert right.wrong == []
    assert right.outcomes.total() >= 8
    assert len(wrong.wrong) == wrong.outcomes.total() == 2
    assert "InputError" in wrong.wrong[1]
    steady = [(float(second), 100) for second in range(100)]
    verdict = soak.Verdict(1.0, {}, 0, (), soak._growth(steady), (), scheduler.statistics)
    verdict.require(growth=1)
    for change in ({"wrong": ("(1,) instead of (2,)",)}, {"lost": 1}, {"growth": 2.0}):
        with pytest.raises(ParityError, match="the soak failed"):
            replace(verdict, **change).require(growth=1)


def test_request_errors_have_one_exit_code() -> None:
    kinds = (QueueFullError, CancelledError, TimedOutError, SchedulerClosedError)
    assert {kind.exit_code for kind in kinds} == {11}
    codes = [kind.exit_code for kind in FoveateError.__subclasses__()]
    assert len(codes) == len(set(codes))


def test_closing_again_takes_nothing_back(pipelines: Pipelines) -> None:
    """Everything is called off, and the block is left before the scheduler's thread has seen that."""

    class Closing(os.PathLike[str]):
        """An image: while it is opened, in the scheduler's thread, nobody else can look."""

        def __fspath__(self) -> str:
            scheduler.close(cancel=True)
            scheduler.close()
            return "nowhere.png"

    ask = asks("plain")[2]
    scheduler = Scheduler(pipelines["plain", "fused"], slots=1)
    first = scheduler.submit("What is this?", [Closing()])
    handles = [scheduler.submit(*ask, wait=None) for _ in range(5)]
    with pytest.raises(InputError):
        first.result()
    for handle in handles:
        with pytest.raises(SchedulerClosedError):
            handle.result()


def test_a_program_that_ends_without_closing(bundles: dict[str, Path]) -> None:
    """It ends as if nothing were under way; a thread that Python ended within a graph would abort it."""
    program = f"""
from foveate.runtime import GenerateOptions, Scheduler, load
scheduler = Scheduler(load({str(bundles["plain"])!r}, layout="fused", threads=1))
handles = [scheduler.submit("No picture.", (), GenerateOptions(max_new_tokens=10**6)) for _ in range(8)]
next(iter(handles[0]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_waiting_longer_than_a_lock_can(pipelines: Pipelines) -> None:
    ask = asks("plain")[2]
    with Scheduler(pipelines["plain", "fused"], slots=1, queue=1) as scheduler:
        handles = [scheduler.submit(*ask, wait=wait) for wait in (0, float("inf"), 10**400, 1e300)]
        assert all(handle.result(wait=float("inf")).token_ids for handle in handles)


def test_a_text_is_no_list_of_requests(pipelines: Pipelines) -> None:
    with Scheduler(pipelines["plain", "fused"]) as scheduler:
        with pytest.raises(InputError, match="a batch is a list of requests"):
            scheduler.submit_all("What is this?")
        assert scheduler.statistics.submitted == 0
