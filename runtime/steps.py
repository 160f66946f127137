"""Long work that may pause: generators that yield between parts, and give their result at the end.

Whoever has nothing else to do runs one to its end with `finish`; a scheduler lets others have their turn at
each pause. Nothing of one's state may be shared with another one that is under way, but for what says so.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
# Yields the name of the part that was just done: preprocess, vision, embed or prefill.
Steps: TypeAlias = Generator[str, None, T]


def finish(steps: Steps[T]) -> T:
    """The result, without any pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
