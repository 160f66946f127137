"""Requests leave nothing behind: bytes that are still handed out when they are over, counted for each.

Resident memory is no measure in a test, for allocators keep what was freed. Counted are the blocks of
Python's objects and the bytes that malloc has handed out. (tracemalloc counts what replaces older memory as
more.) A few blocks are caches that fill in the first hundreds of requests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from many import Ask, Clock, add, asks, run

from foveate.runtime import GenerateOptions, Handle, Pipeline, Scheduler
from foveate.runtime.errors import CancelledError, InputError, TimedOutError
from foveate.runtime.scheduler.engine import Engine, Limits
from foveate.tools.heap import handed_out

Pipelines = dict[tuple[str, str], Pipeline]

REQUESTS = 64
BLOCKS, BYTES = 8.0, 200.0
"""What a request may leave behind, on average: a handle with its answer is dozens of blocks."""
ASKS, LONG = asks("pruned"), "word " * 100_000
SHORT = GenerateOptions(max_new_tokens=3)


def answered(engine: Engine) -> None:
    assert ended(engine)[0].error is None


def cancelled(engine: Engine) -> None:
    """One that is decoded, one that is read."""
    handles = [add(engine, ask) for ask in asked()]
    run(engine, 5)
    for handle in handles:
        handle.cancel()
    run(engine)
    assert any(isinstance(handle.error, CancelledError) for handle in handles)


def late(engine: Engine) -> None:
    clock = Clock()
    handles = [add(engine, ask, clock, 3.0) for ask in asked()]
    run(engine, 5)
    clock.now += 5
    run(engine)
    assert any(isinstance(handle.error, TimedOutError) for handle in handles)


def bad(engine: Engine) -> None:
    ask = ASKS[0]
    for wrong in (ask._replace(images=[b"no picture"]), ask._replace(prompt=LONG, images=())):
        handle = add(engine, wrong)
        run(engine)
        assert isinstance(handle.error, InputError)


def asked() -> list[Ask]:
    """With an image, and without."""
    return [ask._replace(options=SHORT) for ask in (ASKS[0], ASKS[2])]


def ended(engine: Engine) -> list[Handle]:
    handles = [add(engine, ask) for ask in asked()]
    run(engine)
    return handles


def left(once: Callable[[], None], number: int) -> tuple[float, float]:
    """What each of `number` calls leaves behind: Python's blocks, and malloc's bytes, if it tells."""
    for _ in range(number // 2):  # what is kept for good is made now
        once()
    before, blocks = handed_out(collect=True), sys.getallocatedblocks()
    for _ in range(number):
        once()
    after, more = handed_out(collect=True), sys.getallocatedblocks() - blocks
    return more / number, 0.0 if before is None or after is None else (after - before) / number


@pytest.mark.parametrize("once", [answered, cancelled, late, bad], ids=lambda kind: kind.__name__)
def test_a_request_leaves_nothing_behind(pipelines: Pipelines, once: Callable[[Engine], None]) -> None:
    engine = Engine(pipelines["pruned", "segmented"], Limits(slots=2, queue=8, rows=16))
    blocks, held = left(lambda: once(engine), REQUESTS)
    assert blocks < BLOCKS
    assert held < BYTES


def test_what_is_left_behind_is_seen(pipelines: Pipelines) -> None:
    """An engine whose handles are kept."""
    engine = Engine(pipelines["pruned", "segmented"], Limits(slots=2, queue=8, rows=16))
    kept: list[Handle] = []
    blocks, _ = left(lambda: kept.extend(ended(engine)), 16)
    assert blocks > 5 * BLOCKS


def test_bytes_that_are_left_behind_are_seen() -> None:
    """Where malloc tells; where it does not, blocks alone are counted."""
    if handed_out() is None:
        pytest.skip("malloc does not tell what it has handed out")
    kept: list[bytes] = []
    _, held = left(lambda: kept.append(bytes(int(5 * BYTES))), 16)
    assert held > 4 * BYTES


def test_a_scheduler_leaves_nothing_behind(pipelines: Pipelines) -> None:
    """With its thread: tokens and answers cross from one to the other."""
    ask = asked()[0]
    with Scheduler(pipelines["pruned", "segmented"], slots=2) as scheduler:
        blocks, held = left(lambda: [*scheduler.submit(*ask)] and None, REQUESTS)
    assert blocks < BLOCKS
    assert held < BYTES
