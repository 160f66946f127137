"""Many requests at once: whatever the order of events, an answer is the one of its request alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many import Ask, Clock, add, asks, outcome, run

from foveate.runtime import Budget, GenerateOptions, Handle, Pipeline
from foveate.runtime.errors import (
    BackendError,
    CancelledError,
    InputError,
    NothingPrunedError,
    RequestError,
    TimedOutError,
    UsageError,
)
from foveate.runtime.generate import prefill, prefill_steps
from foveate.runtime.scheduler.engine import Engine, Limits
from foveate.runtime.steps import finish

Pipelines = dict[tuple[str, str], Pipeline]
every_pipeline = pytest.mark.parametrize(
    "which", [(name, layout) for name in ("plain", "pruned") for layout in ("fused", "segmented")]
)


# --- exactness ----------------------------------------------------------------------------------------------

events = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 9), st.sampled_from([None, None, 3.0])),
        st.tuples(st.just("turn"), st.integers(1, 6), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.none()),
        st.tuples(st.just("time"), st.integers(1, 2), st.none()),
    ),
    min_size=6,
    max_size=30,
)
limits = st.builds(
    Limits, slots=st.integers(1, 4), queue=st.just(40), rows=st.integers(3, 60), burst=st.integers(1, 3)
)


@every_pipeline
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(events=events, limits=limits)
def test_any_interleaving(
    pipelines: Pipelines, alone: Any, which: tuple[str, str], events: Any, limits: Limits
) -> None:
    """Submissions, cancellations, time-outs and turns in any order; every slot is free at the end."""
    pool, answers, clock = asks(which[0]), alone(which), Clock()
    engine = Engine(pipelines[which], limits)
    handles: list[tuple[int, Handle]] = []
    for event, number, deadline in events:
        if event == "submit":
            number %= len(pool)
            handles.append((number, add(engine, pool[number], clock, deadline)))
        elif event == "turn":
            run(engine, number)
        elif event == "cancel" and handles:
            handles[number % len(handles)][1].cancel()
        elif event == "time":
            clock.now += number
    run(engine)
    done = engine.statistics
    assert (done.waiting, done.reading, done.decoding) == (0, 0, 0)
    assert done.submitted == len(handles) == done.finished + done.cancelled + done.timed_out
    for number, handle in handles:
        answer = answers[number]
        assert handle.done
        ids = tuple(token.id for token in handle.tokens)
        if handle.error is None:
            assert outcome(handle.result()) == outcome(answer)
            assert ids == answer.token_ids
            assert "".join(token.text for token in handle) == answer.text
        else:
            assert isinstance(handle.error, (CancelledError, TimedOutError))
            assert ids == answer.token_ids[: len(ids)]


@pytest.mark.parametrize("layout", ["fused", "segmented"])
def test_all_that_llava_has_not(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three axes of positions, cached positions, DeepStack, images that see ahead, images of any size."""
    pipeline = toy.make_pipeline(tmp_path, layout, monkeypatch)
    pictures = [tiny.make_image(seed, size) for seed, size in ((0, (50, 40)), (1, (30, 70)), (2, (40, 40)))]
    every = [
        Ask("What?", pictures[:1], GenerateOptions(max_new_tokens=9)),
        Ask("<image>and<image>?", pictures[1:], GenerateOptions(max_new_tokens=5, keep_ratio=0.3)),
        Ask("No picture.", (), GenerateOptions(max_new_tokens=12)),
        Ask("Look", pictures[2:], GenerateOptions(max_new_tokens=7, keep={"decoder@1": Budget(ratio=0.2)})),
    ]
    expected = [outcome(pipeline.generate(*ask)) for ask in every]
    engine = Engine(pipeline, Limits(slots=3, rows=4))
    handles = [add(engine, ask) for ask in every + every[::-1]]
    run(engine)
    assert [outcome(handle.result()) for handle in handles] == expected + expected[::-1]


@every_pipeline
def test_pieces_of_a_prompt_give_the_logits_of_the_whole(
    pipelines: Pipelines, which: tuple[str, str]
) -> None:
    pipeline = pipelines[which]
    for ask in asks(which[0]):
        prompt = pipeline.prepare(*ask)
        whole = prefill(pipeline.model, prompt, ask.options, pipeline.model.new_cache(1))
        for rows in (1, 7, 64):
            cache_ = pipeline.model.new_cache(1)
            pieces = finish(prefill_steps(pipeline.model, prompt, ask.options, cache_, rows=rows))
            np.testing.assert_allclose(pieces.logits, whole.logits, atol=2e-5)
            assert pieces.reports == whole.reports
            assert [length.tolist() for length in cache_.lengths] == [n.tolist() for n in whole.cache.lengths]


@pytest.mark.parametrize(("which", "whole"), [(("plain", "segmented"), 0), (("pruned", "segmented"), 2)])
def test_no_piece_is_larger_than_asked(pipelines: Pipelines, which: tuple[str, str], whole: int) -> None:
    """But for segments with a cut behind them, which has to see all rows."""
    pipeline = pipelines[which]
    ask = asks(which[0])[1]
    prompt = pipeline.prepare(*ask)
    cache_ = pipeline.model.new_cache(1)
    seen = [0]
    steps = prefill_steps(pipeline.model, prompt, ask.options, cache_, rows=5)
    for _ in steps:
        seen.append(sum(int(length[0]) for length in cache_.lengths))
    seen.append(sum(int(length[0]) for length in cache_.lengths))
    sizes = np.diff(seen)[1:].tolist()  # the first part is embedding
    assert max(sizes[whole:]) == 5
    assert all(size > 5 for size in sizes[:whole])
    assert len(sizes) == whole + -(-int(cache_.lengths[-1][0]) // 5)


def test_batches_are_full(pipelines: Pipelines, alone: Any) -> None:
    """Requests that came together are decoded together: far fewer steps than tokens."""
    which = ("plain", "fused")
    engine = Engine(pipelines[which], Limits(slots=8))
    ask = asks("plain")[2]
    handles = [add(engine, ask) for _ in range(8)]
    run(engine)
    answer = alone(which)[2]
    assert [handle.result().token_ids for handle in handles] == [answer.token_ids] * 8
    steps = len(answer.token_ids) - 1
    assert engine.statistics.steps <= 3 * steps
    assert engine.statistics.tokens == 8 * (steps + 1)


def test_first_come_first_served(pipelines: Pipelines) -> None:
    engine = Engine(pipelines["plain", "fused"], Limits(slots=1))
    clock = Clock()
    handles = [add(engine, asks("plain")[i], clock) for i in (0, 3, 2)]
    while not engine.idle:
        engine.turn()
        clock.now += 1
    totals = [handle.times.total or 0 for handle in handles]
    assert totals == sorted(totals)
    for handle in handles:
        times = handle.times
        assert times.queued is not None
        assert times.ttft is not None
        assert times.queued <= times.ttft <= (times.total or 0)


# --- requests that go wrong, and their neighbours -----------------------------------------------------------


@pytest.fixture
def bystanders(pipelines: Pipelines, alone: Any) -> Iterator[Any]:
    """An engine in which two requests are being decoded; at the end they must have answered as if alone."""
    which = ("pruned", "segmented")
    engine = Engine(pipelines[which], Limits(slots=3, queue=4, capacity=200))
    handles = {i: add(engine, asks("pruned")[i]) for i in (2, 5)}
    while engine.statistics.decoding < 2:
        engine.turn()
    yield engine
    run(engine)
    for i, handle in handles.items():
        assert outcome(handle.result()) == outcome(alone(which)[i])
    # And the slot is as good as new.
    again = add(engine, asks("pruned")[0])
    run(engine)
    assert outcome(again.result()) == outcome(alone(which)[0])
    assert engine.statistics.decoding == 0


def _corrupt(ask: Ask) -> Ask:
    return ask._replace(images=[b"no picture"])


BAD = {
    "corrupt image": (_corrupt, InputError, "image"),
    "places": (lambda ask: ask._replace(prompt="<image><image>"), InputError, "2 places"),
    "over the model": (lambda ask: ask._replace(prompt="x" * 3000), InputError, "too long for the model"),
    "out of all proportion": (
        lambda ask: ask._replace(prompt="x" * 5000),
        InputError,
        r"5,000 characters.*at most 3,200 for 200 tokens",
    ),
    "over the cache": (
        lambda ask: ask._replace(prompt="x" * 300),
        InputError,
        r"does not fit into a slot's cache.*at most 199",
    ),
    "nothing pruned": (
        lambda ask: ask._replace(
            options=GenerateOptions(
                keep={site: Budget(ratio=0.999) for site in ("encoder", "decoder@1", "decoder@3")}
            )
        ),
        NothingPrunedError,
        "allow-unpruned",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(bystanders: Engine, case: str) -> None:
    change, kind, message = BAD[case]
    handle = add(bystanders, change(asks("pruned")[0]))
    while not handle.done:
        bystanders.turn()
    with pytest.raises(kind, match=message):
        handle.result()
    with pytest.raises(kind, match=message):
        list(handle)
    assert bystanders.statistics.failed == 1


@pytest.mark.parametrize("state", ["waiting", "reading", "decoding"])
@pytest.mark.parametrize("how", ["cancel", "time-out"])
def test_broken_off(bystanders: Engine, state: str, how: str) -> None:
    clock = Clock()
    handle = add(bystanders, asks("pruned")[5], clock, deadline=10.0 if how == "time-out" else None)
    there = {"waiting": 1, "reading": 1, "decoding": 3}[state]
    while getattr(bystanders.statistics, state) != there:
        bystanders.turn()
    if how == "cancel":
        assert handle.cancel()
    else:
        clock.now = 11.0
    bystanders.turn()
    with pytest.raises(CancelledError if how == "cancel" else TimedOutError) as raised:
        handle.result()
    assert isinstance(raised.value, RequestError)
    assert bool(handle.tokens) == (state == "decoding")
    assert not handle.cancel()
    now = bystanders.statistics
    assert (now.waiting, now.reading, now.decoding) == (0, 0, 2)
    assert now.cancelled + now.timed_out == 1


def test_answers_in_time_are_not_given_up(bystanders: Engine) -> None:
    clock = Clock()
    handle = add(bystanders, asks("pruned")[0], clock, deadline=10.0)
    clock.now = 9.0
    run(bystanders)
    assert handle.result().token_ids


def test_numbers_that_break_stay_in_their_row(bystanders: Engine) -> None:
    """NaN in the caches of one request: it fails, and whoever gets its slot does not notice."""
    handle = add(bystanders, asks("pruned")[5])
    while bystanders.statistics.decoding < 3:
        bystanders.turn()
    for buffers in bystanders._batch.cache._memory:
        for memory in buffers.values():
            memory[2] = np.nan
    bystanders.turn()
    with pytest.raises(BackendError, match="not numbers"):
        handle.result()


def test_time_that_runs_out_between_two_looks_loses_nobody(pipelines: Pipelines) -> None:
    """A request whose time is over just while others are taken out of the queue ends, too."""

    class Running(Clock):
        """One second later each time that somebody looks."""

        def __call__(self) -> float:
            self.now += 1.0
            return self.now

    engine = Engine(pipelines["plain", "fused"], Limits(slots=1))
    ask = asks("plain")[2]
    first = add(engine, ask, deadline=0.5)
    first.cancel()
    hurried = [add(engine, ask, Running(), deadline) for deadline in (1.5, 2.5)]
    run(engine)
    assert all(handle.done for handle in (first, *hurried))
    done = engine.statistics
    assert done.submitted == 3 == done.cancelled + done.timed_out


def test_numbers_that_break_in_reading_stay_there(pipelines: Pipelines, alone: Any) -> None:
    """NaN in the memory that prompts are read into, of a request that is cancelled before anybody sees it."""
    which = ("pruned", "segmented")
    engine = Engine(pipelines[which], Limits(slots=1, rows=4))
    handle = add(engine, asks("pruned")[1])
    while engine._staging is None or not engine._staging.reserved_bytes:
        engine.turn()
    for buffers in engine._staging._bindings:
        for memory in buffers.values():
            memory[:] = np.nan
    handle.cancel()
    again = add(engine, asks("pruned")[2])
    run(engine)
    assert outcome(again.result()) == outcome(alone(which)[2])
    # Some graphs multiply slots that are not in use by zero.
    memory = [each for buffers in engine._staging._bindings for each in buffers.values()]
    assert memory
    assert all(np.isfinite(each).all() for each in memory)


def test_a_graph_that_fails_ends_those_it_ran_for_only(
    pipelines: Pipelines, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = ("plain", "fused")
    engine = Engine(pipelines[which], Limits(slots=2))
    first = [add(engine, asks("plain")[2]) for _ in range(2)]
    while engine.statistics.decoding < 2:
        engine.turn()
    waiting = add(engine, asks("plain")[0])
    with monkeypatch.context() as broken:
        broken.setattr(engine._batch, "step", lambda: (_ for _ in ()).throw(BackendError("stage failed")))
        engine.turn()
    run(engine)
    for handle in first:
        with pytest.raises(BackendError, match="stage failed"):
            handle.result()
    assert outcome(waiting.result()) == outcome(alone(which)[0])


def test_limits() -> None:
    for name, value in (
        ("slots", 0),
        ("slots", 257),
        ("queue", 0),
        ("rows", 0),
        ("burst", True),
        ("capacity", 1),
    ):
        with pytest.raises(UsageError, match=f"{name} is out of range"):
            Limits(**{name: value})
