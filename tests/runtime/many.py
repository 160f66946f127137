"""Requests of all kinds for tests of the scheduler, and an engine to put them into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tiny

from foveate.runtime import Budget, GenerateOptions, Generation, Handle
from foveate.runtime.scheduler.engine import Engine
from foveate.runtime.scheduler.job import Job

IMAGES = [tiny.make_image(seed, size) for seed, size in ((0, (90, 70)), (1, (50, 120)), (2, (70, 70)))]


class Ask(NamedTuple):
    prompt: str
    images: Sequence[Any]
    options: GenerateOptions


def asks(name: str) -> list[Ask]:
    """Short and long ones, with and without images, of different budgets."""
    budgets: list[dict[str, Any]] = [{}, {"keep_ratio": 0.2}, {"keep_tokens": 9}, {"keep_ratio": 1.0}]
    if name == "plain":
        budgets = [{}]
    keep = {"decoder@1": Budget(ratio=1.0), "decoder@3": Budget(tokens=40)} if name == "pruned" else {}
    every = [
        Ask("What is this?", IMAGES[:1], GenerateOptions(max_new_tokens=12)),
        Ask("<image>One, and <image>two: which of both?", IMAGES[1:], GenerateOptions(max_new_tokens=7)),
        Ask("No picture at all.", (), GenerateOptions(max_new_tokens=20)),
        Ask("Say what you see<image>", IMAGES[2:], GenerateOptions(max_new_tokens=1)),
        Ask("And now?", IMAGES[:1], GenerateOptions(max_new_tokens=9, temperature=1.3, top_k=50, seed=3)),
        Ask("Keep it.", IMAGES[1:2], GenerateOptions(max_new_tokens=16, keep=keep, allow_unpruned=True)),
    ]
    more = [Ask("What is this?", IMAGES[:1], GenerateOptions(max_new_tokens=10, **each)) for each in budgets]
    return every + more


def outcome(answer: Generation) -> tuple[Any, ...]:
    """Everything but the timings."""
    return answer.text, answer.token_ids, answer.finish_reason, answer.report


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def add(
    engine: Engine, ask: Ask, clock: Clock | None = None, deadline: float | None = None, number: int = 0
) -> Handle:
    handle = Handle(number, clock or Clock())
    engine.add([Job(handle, ask.prompt, ask.images, (), ask.options, deadline)])
    return handle


def run(engine: Engine, turns: int = 10_000) -> None:
    for _ in range(turns):
        if engine.idle:
            return
        engine.turn()
