"""What an engine takes beside what the decoder feeds, and in which type.

Engines with TensorRT's own attention take two numbers for each segment: where the chunk goes in the caches,
and how far these are filled once it is there. Both follow from the lengths that every lowering takes.

    cache_length_0      [28]    chunk of 4 rows (of which the last may be padding)
    write_index_0       [28]    its first slot
    key_value_length_0  [32]    slots up to its last row: the causal mask counts from the lower right corner,
                                so padding counts, too; what it leaves there the next chunk writes over
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from foveate.runtime.arrays import Array

# Inputs `[b, s, ...]`, one of which every decoder and embed graph has.
_TOKENS = ("position_ids", "input_ids")
# Prefix of an engine's input -> prefix of the lengths that it is made of, and how.
_DERIVED: dict[str, tuple[str, Callable[[Array, int], Array]]] = {
    "write_index_": ("cache_length_", lambda length, width: length),
    "key_value_length_": ("cache_length_", lambda length, width: length + width),
}


def chunk_of(feeds: Mapping[str, Any]) -> tuple[int, int] | None:
    """Sequences of a chunk of tokens, and rows of each; None for graphs that take no tokens."""
    shapes = (feeds[name].shape for name in _TOKENS if name in feeds)
    return next(((int(shape[0]), int(shape[1])) for shape in shapes), None)


def derived(names: Iterable[str], feeds: Mapping[str, Any]) -> dict[str, Array]:
    """Those of the inputs `names` that are made of lengths in `feeds`: int64 `[b]`."""
    chunk = chunk_of(feeds)
    made: dict[str, Array] = {}
    for name in names:
        prefix, _, group = name.rpartition("_")
        source = _DERIVED.get(f"{prefix}_")
        length = None if source is None else feeds.get(source[0] + group)
        if source is not None and length is not None and chunk is not None:
            made[name] = source[1](np.asarray(length), chunk[1])
    return made


def split(feeds: Mapping[str, Any], most: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Feeds of independent items in runs of at most so many; `names` have an entry for each item."""
    own = {name: feeds[name] for name in names if name in feeds}
    count = max((len(value) for value in own.values()), default=0)
    for start in range(0, count, most):
        yield {name: value[start : start + most] for name, value in own.items()}


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Outputs of such runs as those of one, in the host's memory."""
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def padded(value: Array, least: tuple[int, ...] | None) -> Array:
    """An input without rows, as large as an engine wants it at least; others as they are.

    Profiles begin at 1. The only inputs that may be empty are the visual features of a text and the index of
    those that are kept: no token has a slot there, so nobody reads the zeros.
    """
    if value.size or least is None:
        return value
    shape = tuple(max(have, want) for have, want in zip(value.shape, least, strict=True))
    return np.zeros(shape, value.dtype)
