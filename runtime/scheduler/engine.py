"""Who runs next: prompts are read part by part, and between two parts everybody who decodes gets a token.

    turn      1       2       3       4       5       6
    read      A: look A: read B: look B: read C: look C: read     first come, first served
    decode                    A       A       A B     A B

One turn is a little reading and one decoding step. Reading goes on until it took as long as the latest step,
so neither starves; that is `burst` parts at least. An engine has no thread: whoever calls `turn` works, and
tests place what they like between two turns. `Scheduler` is the engine with a thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from foveate.runtime.cache import KVCache
from foveate.runtime.errors import (
    CancelledError,
    FoveateError,
    QueueFullError,
    SchedulerClosedError,
    TimedOutError,
    UsageError,
)
from foveate.runtime.generate import Prefill
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.scheduler.batch import Batch
from foveate.runtime.scheduler.job import Job, reading
from foveate.runtime.scheduler.statistics import Statistics
from foveate.runtime.steps import Steps

_MOST_SLOTS = 256
_LARGEST = 2**31 - 1
_KINDS: dict[type[BaseException], str] = {
    CancelledError: "cancelled",
    SchedulerClosedError: "cancelled",
    TimedOutError: "timed_out",
}


@dataclass(frozen=True)
class Limits:
    """What a scheduler may take on.

    Attributes:
        slots: requests that are read or decoded at once, 1 to 256.
        queue: requests that may wait for a slot.
        rows: of a prompt that are read at a time, in graphs that can be run in pieces.
        burst: parts of reading between two decoding steps; more, when these take less time than a step.
        capacity: tokens, of prompt (visual ones included) and answer, that a slot may hold; None: as many as
            the model has positions.

    Raises:
        UsageError: a number is out of range.
    """

    slots: int = 8
    queue: int = 64
    rows: int = 256
    burst: int = 1
    capacity: int | None = None

    def __post_init__(self) -> None:
        _require("slots", self.slots, 1, _MOST_SLOTS)
        _require("queue", self.queue, 1)
        _require("rows", self.rows, 1)
        _require("burst", self.burst, 1)
        if self.capacity is not None:
            _require("capacity", self.capacity, 2)


class Engine:
    """Jobs that wait, the one that is read, and those that are decoded.

    `add` and `statistics` may be called from any thread, everything else from one only.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._capacity = limits.capacity or pipeline.manifest.model.max_positions
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._reader: tuple[Job, Steps[Prefill]] | None = None
        self._staging: KVCache | None = None
        self._batch = Batch(pipeline.model, limits.slots)
        self._count = dict.fromkeys(("submitted", "finished", "failed", "cancelled", "timed_out"), 0)
        self._steps = self._tokens = 0
        self._stall, self._stall_part = 0.0, ""
        self._step_seconds = 0.0

    def add(self, jobs: Sequence[Job]) -> None:
        """Take jobs, all or none.

        Raises:
            QueueFullError: there is no room for them.
        """
        with self._lock:
            waiting = len(self._waiting)
            if waiting + len(jobs) > self._limits.queue:
                raise QueueFullError(
                    "too many requests are waiting",
                    found=f"{waiting} waiting, {len(jobs)} new",
                    wanted=f"at most {self._limits.queue} in all",
                    mend="ask again later, wait for room with wait=SECONDS, or raise queue",
                )
            self._waiting.extend(jobs)
            self._count["submitted"] += len(jobs)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._reader or self._batch.jobs)

    def turn(self) -> None:
        """Free what is cancelled or late, read a little, and decode one token of everybody."""
        self._sweep()
        stalled = bool(self._batch.jobs)
        spent, longest, part, number = 0.0, 0.0, "", 0
        while number < self._limits.burst or spent < self._step_seconds:
            done, seconds = self._read_part()
            if not done:
                break
            number, spent = number + 1, spent + seconds
            if seconds > longest:
                longest, part = seconds, done
        if stalled and spent > self._stall:
            self._stall, self._stall_part = spent, part
        if self._batch.jobs:
            start = time.perf_counter()
            self._decode()
            self._step_seconds = time.perf_counter() - start

    def abandon(self, error: FoveateError) -> None:
        """End everything that is under way."""
        with self._lock:
            jobs = [*self._waiting, *self._batch.jobs]
            self._waiting.clear()
        if self._reader:
            jobs.append(self._reader[0])
            self._stop_reading()
        self._batch.clear()
        for job in jobs:
            self._fail(job, error)

    @property
    def statistics(self) -> Statistics:
        """Counts so far."""
        staging = self._staging  # the engine's thread may let go of it meanwhile
        return Statistics(
            **self._count,
            waiting=len(self._waiting),
            reading=int(self._reader is not None),
            decoding=len(self._batch.jobs),
            steps=self._steps,
            tokens=self._tokens,
            stall=self._stall,
            stall_part=self._stall_part,
            cache_bytes=self._batch.cache.reserved_bytes + (staging.reserved_bytes if staging else 0),
        )

    # --- reading --------------------------------------------------------------------------------------------

    def _read_part(self) -> tuple[str, float]:
        """One part of the prompt whose turn it is; gives its name and seconds."""
        if self._reader is None and not self._next_reader():
            return "", 0.0
        assert self._reader is not None
        job, steps = self._reader
        start = time.perf_counter()
        part, read = "prefill", None
        try:
            try:
                part = next(steps)
            except StopIteration as end:
                read = end.value
            seconds = time.perf_counter() - start
            job.timings = job.timings.plus(**{part: seconds})
            if read is not None:
                self._reader = None
                self._begin(job, read)
        except Exception as error:
            # Whatever it is, it is this request's own affair: images raise all kinds of things.
            self._staging = None  # it may hold NaN
            self._reader = None
            self._fail(job, error)
        return part, time.perf_counter() - start

    def _next_reader(self) -> bool:
        """Whether a job can be read now."""
        if len(self._batch.jobs) >= self._limits.slots:
            return False
        with self._lock:
            if not self._waiting:
                return False
            job = self._waiting.popleft()
        job.handle.started()
        steps = reading(
            self._pipeline, job, self._empty_cache, rows=self._limits.rows, capacity=self._capacity
        )
        self._reader = (job, steps)
        return True

    def _empty_cache(self) -> KVCache:
        """The memory into which prompts are read, one after the other."""
        if self._staging is None:
            self._staging = self._pipeline.model.new_cache(1)
        self._staging.rollback_to([length * 0 for length in self._staging.lengths])
        return self._staging

    def _begin(self, job: Job, read: Prefill) -> None:
        """A prompt was read: its first token, and a row in the batch for the others."""
        job.decoding_since = time.perf_counter()
        self._tokens += 1
        if job.accept(read.logits[0, 0]):
            self._finish(job)
        else:
            self._batch.add(job, read.cache)

    def _stop_reading(self) -> None:
        if self._reader:
            self._reader[1].close()
            self._reader = None
            self._staging = None  # nobody has looked whether it holds NaN

    # --- decoding -------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        try:
            logits = self._batch.step()
        except Exception as error:  # of the graph all of them run in
            jobs = self._batch.jobs
            self._batch.clear()
            for job in jobs:
                self._fail(job, error)
            return
        self._steps += 1
        self._tokens += len(self._batch.jobs)
        for row, job in enumerate(tuple(self._batch.jobs)):
            try:
                if job.accept(logits[row]):
                    self._batch.remove(job)
                    self._finish(job)
            except Exception as error:  # NaN in this row, say: the others go on
                self._batch.remove(job, broken=True)
                self._fail(job, error)

    # --- ends -----------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Free the slots and places of all that are cancelled or late."""
        with self._lock:
            # Each is looked at once: one whose time runs out between two looks would be nowhere.
            ended: list[Job] = []
            left = deque[Job]()
            for job in self._waiting:
                (ended if _is_over(job) else left).append(job)
            self._waiting = left
        if self._reader and _is_over(self._reader[0]):
            ended.append(self._reader[0])
            self._stop_reading()
        for job in tuple(job for job in self._batch.jobs if _is_over(job)):
            ended.append(job)
            self._batch.remove(job)
        for job in ended:
            self._fail(job, _why_over(job))

    def _finish(self, job: Job) -> None:
        self._count["finished"] += 1
        job.handle.finish(job.generation())

    def _fail(self, job: Job, error: BaseException) -> None:
        self._count[_KINDS.get(type(error), "failed")] += 1
        job.handle.fail(error)


def _is_over(job: Job) -> bool:
    return job.handle.cancelled or job.late


def _why_over(job: Job) -> FoveateError:
    tokens = f"{len(job.handle.tokens)} tokens after {job.handle.age:.3g} s"
    if job.handle.cancelled:
        return CancelledError("the request was cancelled", found=tokens)
    wanted = f"the whole answer within {job.deadline:g} s"
    mend = "allow more time, ask for fewer tokens, or use a smaller --keep-ratio"
    return TimedOutError("the request timed out", found=tokens, wanted=wanted, mend=mend)


def _require(name: str, value: object, low: int, high: int = _LARGEST) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        wanted = f"a whole number, {low} to {high}" if high < _LARGEST else f"a whole number, {low} or more"
        raise UsageError(f"{name} is out of range", found=repr(value)[:200], wanted=wanted)
