"""The scheduler: an engine with a thread of its own."""

from __future__ import annotations

import atexit
import itertools
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from foveate.runtime.budgets import require_known_sites
from foveate.runtime.errors import QueueFullError, SchedulerClosedError, UsageError
from foveate.runtime.images import Images
from foveate.runtime.options import GenerateOptions
from foveate.runtime.pipeline import AnyRequest, Pipeline, as_requests
from foveate.runtime.prompt import Prompt
from foveate.runtime.scheduler.engine import Engine, Limits
from foveate.runtime.scheduler.handle import Handle
from foveate.runtime.scheduler.job import Job
from foveate.runtime.scheduler.statistics import Statistics
from foveate.runtime.sharing import require_share
from foveate.runtime.videos import Videos

_DEFAULTS = GenerateOptions()


class Scheduler:
    """Answers many requests at once; any thread may submit.

        with Scheduler(load("bundle", layout="segmented"), slots=8) as scheduler:
            handles = [scheduler.submit("What is this?", [path]) for path in paths]
            for handle in handles:
                print(handle.result().text)

    Leaving the block waits for all answers; an exception in it, or the end of the program, calls everything
    off. The pipeline belongs to the scheduler until that is closed: a pipeline has one thread at a time.

    Args:
        slots, queue, rows, burst, capacity: see `Limits`.

    Raises:
        UsageError: a limit is out of range.
        BackendError: the backend cannot run so many sequences at once.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        slots: int = Limits.slots,
        queue: int = Limits.queue,
        rows: int = Limits.rows,
        burst: int = Limits.burst,
        capacity: int | None = Limits.capacity,
    ) -> None:
        self.limits = Limits(slots, queue, rows, burst, capacity)
        pipeline.model.require_rows(slots)
        self._pipeline = pipeline
        self._engine = Engine(pipeline, self.limits)
        self._numbers = itertools.count()
        # Guards what follows; notified when there is work, when there is room, and at the end.
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="foveate-scheduler", daemon=True)
        self._thread.start()
        # A thread that is inside a graph when Python ends would abort the whole process.
        atexit.register(self.close, cancel=True)

    def submit(
        self,
        prompt: Prompt,
        images: Images = (),
        options: GenerateOptions = _DEFAULTS,
        *,
        videos: Videos = (),
        timeout: float | None = None,
        wait: float | None = 0.0,
    ) -> Handle:
        """Take a request; its answer, or what is wrong with its prompt or images, comes with the handle.

        Args:
            prompt, images, options, videos: as of `Pipeline.generate`.
            timeout: seconds from now until it is given up; None: never.
            wait: seconds to wait for room in the queue; None waits as long as it takes.

        Raises:
            QueueFullError: there was no room.
            UsageError: an option does not fit the bundle.
            SchedulerClosedError: no requests are taken any more.
        """
        return self._take([(prompt, images, videos)], options, timeout, wait)[0]

    def submit_all(
        self,
        requests: Sequence[AnyRequest],
        options: GenerateOptions = _DEFAULTS,
        *,
        timeout: float | None = None,
        wait: float | None = 0.0,
    ) -> list[Handle]:
        """Take several requests, or none of them: as `submit`, with the requests of `generate_batch`."""
        return self._take(as_requests(requests), options, timeout, wait)

    def _take(
        self,
        requests: Sequence[tuple[Prompt, Images, Videos]],
        options: GenerateOptions,
        timeout: float | None,
        wait: float | None,
    ) -> list[Handle]:
        require_known_sites(self._pipeline.manifest, options)
        require_share(options, gives_scores=self._pipeline.model.gives_scores)
        _require_seconds("timeout", timeout)
        _require_seconds("wait", wait)
        if len(requests) > self.limits.queue:
            wait = 0.0  # there will never be room
        jobs = [
            Job(Handle(next(self._numbers)), prompt, images, videos, options, timeout)
            for prompt, images, videos in requests
        ]
        # More than a lock can wait for is as good as for ever.
        end = None if wait is None else time.monotonic() + min(wait, threading.TIMEOUT_MAX)
        with self._changed:
            while True:
                if self._closing:
                    raise SchedulerClosedError("the scheduler is closed", mend="make a new one")
                try:
                    self._engine.add(jobs)
                    break
                except QueueFullError:
                    left = None if end is None else end - time.monotonic()
                    if left is not None and left <= 0:
                        raise
                    self._changed.wait(left)
            self._changed.notify_all()
        return [job.handle for job in jobs]

    @property
    def statistics(self) -> Statistics:
        """What it did so far."""
        return self._engine.statistics

    def close(self, *, cancel: bool = False) -> None:
        """Take no more requests, finish those that were taken, or with `cancel` end them, and stop."""
        with self._changed:
            self._closing = True
            self._cancel = self._cancel or cancel  # a second call, without it, takes nothing back
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            atexit.unregister(self.close)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)

    # --- the thread -----------------------------------------------------------------------------------------

    _cancel = False

    def _work(self) -> None:
        closed = SchedulerClosedError("the scheduler was closed before the request was finished")
        try:
            while self._wait_for_work():
                self._engine.turn()
                with self._changed:
                    self._changed.notify_all()
        except BaseException as error:
            closed = SchedulerClosedError("the scheduler broke down", found=repr(error)[:200])
            raise
        finally:
            # Nobody shall wait for ever, whatever happened.
            with self._changed:
                self._closing = True
                self._engine.abandon(closed)
                self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        """Sleeps until there is something to do; whether there is."""
        with self._changed:
            while self._engine.idle and not self._closing:
                self._changed.wait()
            return not (self._closing and (self._cancel or self._engine.idle))


def _require_seconds(name: str, value: float | None) -> None:
    good = value is None or (isinstance(value, (int, float)) and value >= 0)
    if not good:
        raise UsageError(f"{name} is out of range", found=repr(value), wanted="seconds, 0 or more, or None")
