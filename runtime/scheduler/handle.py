"""What a caller holds of a request: its tokens while they come, its answer, and how to call it off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from foveate.runtime.generate import Generation, Token


@dataclass(frozen=True)
class Times:
    """Seconds since the request was submitted; None: not yet.

    Attributes:
        queued: until it was its turn to be read.
        ttft: until its first token was there.
        total: until it was over.
    """

    queued: float | None = None
    ttft: float | None = None
    total: float | None = None


class Handle:
    """A submitted request. Any thread may use it, and several may iterate, each from the first token on.

    handle = scheduler.submit("What is this?", ["cat.jpg"])
    for token in handle:
        print(token.text, end="", flush=True)
    print(handle.result().report.kept)
    """

    def __init__(self, number: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.number = number
        self._clock = clock
        self._submitted = clock()
        self._times = Times()
        self._changed = threading.Condition()
        self._tokens: list[Token] = []
        self._generation: Generation | None = None
        self._error: BaseException | None = None
        self._cancelled = False

    def __iter__(self) -> Iterator[Token]:
        """The tokens as they come; behind the last one of a request that failed, its error is raised."""
        place = 0
        while True:
            with self._changed:
                while len(self._tokens) == place and not self._over:
                    self._changed.wait()
                new, over = self._tokens[place:], self._over
            yield from new
            place += len(new)
            if over and not new:
                if self._error is not None:
                    raise self._error
                return

    def result(self, wait: float | None = None) -> Generation:
        """The whole answer.

        Args:
            wait: seconds to wait for it; None waits as long as it takes.

        Raises:
            TimeoutError: it is not there yet; the request goes on.
            CancelledError, TimedOutError, SchedulerClosedError: it was broken off.
            InputError, UsageError, NothingPrunedError, BackendError: as of `Pipeline.generate`.
        """
        # More than a lock can wait for is as good as for ever.
        limit = None if wait is None else min(wait, threading.TIMEOUT_MAX)
        with self._changed:
            if not self._changed.wait_for(lambda: self._over, limit):
                raise TimeoutError(f"request {self.number} is not finished after {wait} s")
        if self._error is not None:
            raise self._error
        assert self._generation is not None
        return self._generation

    def cancel(self) -> bool:
        """Call the request off; whether it was still under way. Its slot is free after the current step."""
        with self._changed:
            self._cancelled = self._cancelled or not self._over
            return not self._over

    @property
    def done(self) -> bool:
        """Whether it is over: answered, failed or called off."""
        with self._changed:
            return self._over

    @property
    def error(self) -> BaseException | None:
        """Why there is no answer; None if there is one, or none yet."""
        with self._changed:
            return self._error

    @property
    def tokens(self) -> tuple[Token, ...]:
        """Those that are there."""
        with self._changed:
            return tuple(self._tokens)

    @property
    def times(self) -> Times:
        """When what happened."""
        with self._changed:
            return self._times

    # --- the engine's side ----------------------------------------------------------------------------------

    @property
    def age(self) -> float:
        """Seconds since it was submitted."""
        return self._clock() - self._submitted

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called in time."""
        return self._cancelled

    @property
    def _over(self) -> bool:
        return self._generation is not None or self._error is not None

    def started(self) -> None:
        """It is its turn."""
        self._times = Times(queued=self.age)

    def put(self, token: Token) -> None:
        """The next token is there."""
        with self._changed:
            if not self._tokens:
                self._times = Times(self._times.queued, self.age)
            self._tokens.append(token)
            self._changed.notify_all()

    def finish(self, generation: Generation) -> None:
        """The answer is whole."""
        self._end(generation, None)

    def fail(self, error: BaseException) -> None:
        """There will be no answer; without effect when it is over."""
        self._end(None, error)

    def _end(self, generation: Generation | None, error: BaseException | None) -> None:
        with self._changed:
            if not self._over:
                self._generation, self._error = generation, error
                self._times = Times(self._times.queued, self._times.ttft, self.age)
                self._changed.notify_all()
