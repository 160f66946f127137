"""Hours of mixed requests in minutes: does anything leak, get lost, or get mixed up?

    python -m foveate.tools.soak BUNDLE --minutes 30 --json soak.json

Requests of random sizes, budgets and lengths are drawn once and answered alone. Then clients ask them at
random through a scheduler: most are heard to their end, some are cancelled at a random token, some get too
little time, some are bad, and now and then many come at once. Each answer must be the one given alone, token
by token; each one broken off its beginning; each bad one its error. Resident memory is sampled throughout,
and the bytes that malloc has handed out; what they grow by after the warm-up is the difference of medians
over the first and last quarter of the rest.

Ends with 0, or with 5 if an answer is wrong or lost, or memory grew by more than --growth megabytes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from foveate.runtime.backend import BackendOptions
from foveate.runtime.backends import choose, open_backend
from foveate.runtime.bundle import Bundle
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
from foveate.runtime.model import Model
from foveate.runtime.pipeline import Pipeline, Request
from foveate.runtime.processor import Processor
from foveate.runtime.scheduler import Handle, Scheduler, Statistics
from foveate.tools.bench.asking import endless
from foveate.tools.bench.machine import rss
from foveate.tools.cli.main import INTERRUPTED
from foveate.tools.cli.output import progress, remark, show_error
from foveate.tools.heap import handed_out
from foveate.tools.places import require_writable
from foveate.tools.soak_requests import Known, answered, draw

_MB: Final = 1 << 20
_SAMPLES: Final = 400
_WARM_UP: Final = 0.2
"""Share of the time after which nothing may grow any more."""


# Made once: each thread's arena would keep half a megabyte for every such text that was under way in it.
_BAD: Final = (Request("Look", [b"no picture"]), Request("word " * 100_000))


@dataclass
class Tally:
    """What clients saw. `lock` guards the rest."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, outcome: str, wrong: str = "") -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            if wrong:
                self.wrong.append(f"{outcome}: {wrong}")


class Client:
    """Asks, hears and judges, one request at a time."""

    def __init__(
        self, scheduler: Scheduler, pool: Sequence[Known], tally: Tally, patience: float, seed: int
    ) -> None:
        self._scheduler, self._pool, self._tally = scheduler, pool, tally
        self._patience = patience
        self._chance = random.Random(seed)
        kinds: dict[Callable[[], None], int] = {
            **{self._hear: 76, self._call_off: 10, self._hurry: 7},
            **{self._misuse: 5, self._crowd: 2},
        }
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def once(self) -> None:
        """One request of a random kind."""
        self._chance.choices(self._kinds, self._weights)[0]()

    def _ask(self, known: Known, timeout: float | None = None) -> Handle:
        return self._scheduler.submit(known.prompt, known.images, known.options, timeout=timeout, wait=None)

    def _hear(self) -> None:
        known = self._chance.choice(self._pool)
        handle = self._ask(known)
        streamed = tuple(token.id for token in _tokens(handle))
        self._judge("answered", known, handle, streamed)

    def _call_off(self) -> None:
        known = self._chance.choice(self._pool)
        handle, after = self._ask(known), self._chance.randint(0, known.options.max_new_tokens)
        try:
            for number, _ in enumerate(handle):
                if number >= after:
                    break
        except FoveateError:
            pass  # it is judged below
        handle.cancel()
        self._wait(handle)
        self._judge("cancelled", known, handle, tuple(token.id for token in handle.tokens))

    def _hurry(self) -> None:
        known = self._chance.choice(self._pool)
        handle = self._ask(known, timeout=self._chance.random() * self._patience)
        self._wait(handle)
        self._judge("timed out", known, handle, tuple(token.id for token in handle.tokens))

    def _misuse(self) -> None:
        bad = self._chance.choice(_BAD)
        handle = self._scheduler.submit(*bad[:2], wait=None)
        self._wait(handle)
        self._tally.add("bad", "" if isinstance(handle.error, InputError) else f"gave {handle.error!r}")

    def _crowd(self) -> None:
        known = self._chance.choice(self._pool)
        number = self._chance.randint(2, self._scheduler.limits.queue + 2)
        try:
            handles = self._scheduler.submit_all(
                [Request(known.prompt, known.images)] * number, known.options
            )
        except QueueFullError:
            self._tally.add("turned away")
            return
        for handle in handles:
            self._wait(handle)
            self._judge("answered", known, handle, tuple(token.id for token in handle.tokens))

    def _wait(self, handle: Handle) -> None:
        for _ in _tokens(handle):
            pass

    def _judge(self, kind: str, known: Known, handle: Handle, heard: tuple[int, ...]) -> None:
        error = handle.error
        if error is None:  # also what was called off too late
            same = heard == known.token_ids == handle.result().token_ids
            self._tally.add("answered", "" if same else f"{heard} instead of {known.token_ids}")
        elif (
            isinstance(error, CancelledError if kind == "cancelled" else TimedOutError) and kind != "answered"
        ):
            begins = heard == known.token_ids[: len(heard)]
            self._tally.add(kind, "" if begins else f"{heard} does not begin {known.token_ids}")
        else:
            self._tally.add(kind, f"gave {error!r}")


def _tokens(handle: Handle) -> Any:
    try:
        yield from handle
    except FoveateError:
        return


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        outcomes: requests by how they ended; lost: taken by the scheduler, but never over.
        wrong: the first wrong answers.
        growth: bytes of resident memory after the warm-up; rss: (seconds, bytes) samples.
        held: likewise of what malloc had handed out; None where it does not tell.
    """

    seconds: float
    outcomes: dict[str, int]
    lost: int
    wrong: tuple[str, ...]
    growth: float
    rss: tuple[tuple[float, int], ...]
    statistics: Statistics
    held: float | None = None

    def require(self, growth: float) -> None:
        """Raises `ParityError` when an answer is wrong or lost, or more bytes than `growth` came up."""
        problems = list(self.wrong[:3])
        if self.lost:
            problems.append(f"{self.lost} requests were never over")
        if self.growth > growth:
            problems.append(f"memory grew by {self.growth / _MB:.1f} MB{self._held}")
        if problems:
            wanted = f"answers as alone, none lost, less than {growth / _MB:.0f} MB"
            raise ParityError("the soak failed", found="; ".join(problems), wanted=wanted)

    @property
    def _held(self) -> str:
        return "" if self.held is None else f" ({self.held / _MB:+.1f} MB of it handed out)"

    def __str__(self) -> str:
        memory = f"memory {self.growth / _MB:+.1f} MB{self._held}"
        return f"{self.seconds:.0f} s, {self.outcomes}, {memory}"


def soak(
    pipeline: Pipeline,
    pool: Sequence[Known],
    *,
    seconds: float,
    slots: int,
    clients: int,
    rows: int,
    seed: int,
) -> Verdict:
    """Let clients ask requests of `pool`, whose answers are known, for so many seconds."""
    tally, stop = Tally(), threading.Event()
    samples: list[tuple[float, int]] = []
    held: list[tuple[float, int]] = []
    scheduler = Scheduler(pipeline, slots=slots, queue=2 * clients, rows=rows)
    # About what a request takes when all slots are full: time-outs fall before and after.
    patience = 2 * slots * _median_seconds(pipeline, pool)

    def ask(number: int) -> None:
        client = Client(scheduler, pool, tally, patience, seed + number)
        try:
            while not stop.is_set():
                client.once()
        except SchedulerClosedError as error:
            # It broke down; or the soak was interrupted, and nobody will read this.
            tally.add("client", repr(error))

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    start = time.monotonic()
    with progress() as report:
        for thread in threads:
            thread.start()
        while (now := time.monotonic() - start) < seconds:
            samples.append((now, rss()[0]))
            held.append((now, handed_out() or 0))
            report("soaking", now, seconds)
            time.sleep(min(seconds / _SAMPLES, seconds - now))
    stop.set()
    for thread in threads:
        thread.join(timeout=60 + 100 * patience)
    done = scheduler.statistics
    scheduler.close(cancel=True)
    over = done.finished + done.failed + done.cancelled + done.timed_out
    return Verdict(
        seconds=time.monotonic() - start,
        outcomes=dict(tally.outcomes),
        lost=done.submitted - over + sum(thread.is_alive() for thread in threads),
        wrong=tuple(tally.wrong),
        growth=_growth(samples),
        rss=tuple(samples),
        statistics=done,
        held=None if handed_out() is None else _growth(held),
    )


def _median_seconds(pipeline: Pipeline, pool: Sequence[Known]) -> float:
    def once(known: Known) -> float:
        start = time.monotonic()
        pipeline.generate(known.prompt, known.images, known.options)
        return time.monotonic() - start

    return statistics.median(once(known) for known in pool[:8])


def _growth(samples: Sequence[tuple[float, int]]) -> float:
    """Difference of the medians over the last and the first quarter of what comes after the warm-up."""
    warm = [size for _, size in samples[int(len(samples) * _WARM_UP) :]]
    quarter = max(1, len(warm) // 4)
    return statistics.median(warm[-quarter:]) - statistics.median(warm[:quarter])


def open_pipeline(path: Path, layout: str, threads: int, backend: str | None = None) -> Pipeline:
    """A bundle whose answers no end-of-text token ends, so that their lengths are what was drawn."""
    bundle = endless(Bundle.open(path))
    name, layout = choose(bundle, backend, layout)
    opened = open_backend(name, bundle, layout, BackendOptions(threads=threads))
    processor = Processor(bundle.processor_path, bundle.manifest.model, bundle.manifest.family)
    return Pipeline(bundle, Model(bundle, layout, opened), processor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long [30]")
    parser.add_argument("--layout", default="segmented", help="fused or segmented [segmented]")
    parser.add_argument("--backend", help="onnxruntime, cuda, ... [the bundle's]")
    parser.add_argument("--threads", type=int, default=1, help="of one operator [1]")
    parser.add_argument("--slots", type=int, default=8, help="requests at once [8]")
    parser.add_argument("--clients", type=int, default=12, help="who ask [12]")
    parser.add_argument("--rows", type=int, default=32, help="of a prompt read at a time [32]")
    parser.add_argument("--requests", type=int, default=64, help="different ones [64]")
    parser.add_argument("--tokens", type=int, default=40, help="of the longest answer [40]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", type=float, default=16.0, help="megabytes of memory allowed [16]")
    parser.add_argument("--json", type=Path, help="write what came out there")
    return parser


def _require(given: argparse.Namespace) -> None:
    """What can be known before anything is loaded. Raises `UsageError`."""
    if not 0 < given.minutes < math.inf:
        raise UsageError("--minutes is out of range", found=str(given.minutes), wanted="more than 0")
    for name in ("slots", "clients", "rows", "requests", "tokens", "threads"):
        if getattr(given, name) < 1:
            raise UsageError(f"--{name} is out of range", found=str(getattr(given, name)), wanted="1 or more")
    if given.json:
        require_writable(given.json.parent)


def _write(given: argparse.Namespace, verdict: Verdict) -> None:
    """What came out, whole or not at all. Raises `UsageError`."""
    settings = {name: str(value) for name, value in vars(given).items()}
    part = given.json.with_name(given.json.name + ".part")
    try:
        part.write_text(json.dumps({"settings": settings, **asdict(verdict)}, indent=1), encoding="utf-8")
        part.replace(given.json)
    except OSError as error:
        raise UsageError(f"{given.json} cannot be written", found=str(error.strerror or error)) from error


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit code."""
    given = _parser().parse_args(words)
    try:
        _require(given)
        pipeline = open_pipeline(given.bundle, given.layout, given.threads, given.backend)
        pool = answered(pipeline, draw(pipeline.manifest, given.requests, given.seed, given.tokens))
        verdict = soak(
            pipeline,
            pool,
            seconds=60 * given.minutes,
            slots=given.slots,
            clients=given.clients,
            rows=given.rows,
            seed=given.seed,
        )
        print(verdict)
        print(verdict.statistics)
        if given.json:
            _write(given, verdict)
        verdict.require(given.growth * _MB)
    except FoveateError as error:
        show_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        remark("\ninterrupted")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
