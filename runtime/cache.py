"""Key and value memory of the decoder's layers, in groups of equal length.

Behind a cut there are fewer tokens, so the layers of each segment share a length of their own:

    group 0 (layers 0, 1)     ############################......   28 tokens, capacity 34
    group 1 (layers 2 to 5)   ############......                   12 tokens, capacity 18

Models with a window of attention also need to know where the cached tokens stand: `past_position_0`, ... are
kept by the host, which knows who survived each cut.

Where some heads of a layer hold text only, these have memory of their own, and a length for each group:

    group 0, heads of text    #########......                      9 tokens, capacity 15

A graph reads `past_*` and writes `present_*`; both names are bound to the same memory, so a token is written
in place and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from foveate.runtime.arrays import Array, Arrays, Ints, ints
from foveate.runtime.manifest import CacheRecord

Allocate = Callable[[Sequence[int], str], Array]
_STEP = 16
_T = TypeVar("_T", int, Ints)


class KVCache:
    """Buffers `[b, g, capacity, head_dim]` of all layers, and how much of each group is filled.

    `lengths[i]` int64 `[b]` counts the tokens of group `i`; `positions[i]` int64 `[b, capacity]` are theirs
    (kept only for models that need them). Slots beyond the length hold anything. Behind the groups, in
    `lengths` as everywhere inside, stand their heads of text, in the same order.
    """

    def __init__(self, record: CacheRecord, batch: int, allocate: Allocate) -> None:
        self._record = record
        self._allocate = allocate
        self.batch = batch
        self._buffers = _buffers(record)
        self.lengths: list[Ints] = [ints([0] * batch) for _ in self._buffers]
        self.positions: list[Ints] = [ints([]).reshape(0, 0)] * len(record.groups)
        self._bindings: list[dict[str, Array]] = [{} for _ in self._buffers]
        self._union: dict[str, Array] | None = None

    @property
    def groups(self) -> int:
        """Number of groups, one more than decoder cuts."""
        return len(self._record.groups)

    def capacity(self, group: int) -> int:
        """Slots of a group."""
        return next((buffer.shape[2] for buffer in self._bindings[group].values()), 0)

    def bindings(self, group: int) -> Arrays:
        """`past_key_3`, `present_key_3`, … of a group's layers to their memory.

        The same mapping object until the memory moves, so that a runner can tell whether to bind again.
        """
        return self._bindings[group]

    def all_bindings(self) -> Arrays:
        """The bindings of all groups together, likewise the same object until memory moves."""
        if self._union is None:
            self._union = {name: buffer for group in self._bindings for name, buffer in group.items()}
        return self._union

    def feeds(self) -> dict[str, Array]:
        """`cache_length_0`, ... and, for models that need them, `past_position_0`, ..."""
        names = ("cache_length", "text_cache_length")
        all_names = [f"{name}_{i}" for name in names for i in range(self.groups)]
        feeds: dict[str, Array] = dict(zip(all_names, self.lengths, strict=False))
        if self._record.positions:
            feeds |= {f"past_position_{i}": positions for i, positions in enumerate(self.positions)}
        return feeds

    def reserve(self, group: int, extra: int, texts: int) -> None:
        """Make room for `extra` more tokens in every row of a group, `texts` of them text; what is in it stays."""
        for store, new in self._stores(group, extra, texts):
            needed = int(self.lengths[store].max()) + new
            if self._buffers[store] and needed > self.capacity(store):
                # Half again as much, so that growing by single tokens moves the memory rarely.
                self._resize(store, max(needed, self.capacity(store) * 3 // 2))

    def fit(self, extra: int) -> None:
        """Size every group for `extra` more tokens. Frees what a prompt needed before a cut shortened it."""
        for store, buffers in enumerate(self._buffers):
            needed = _rounded(int(self.lengths[store].max()) + extra)
            if buffers and not needed <= self.capacity(store) <= 2 * needed:
                self._resize(store, needed)

    def advance(self, group: int, count: Ints, texts: Ints, positions: Ints) -> None:
        """A run has written `count [b]` tokens behind the filled slots: the first of `positions [b, s]`.

        `texts [b]` of them are text.
        """
        if self._record.positions:
            for row, (start, size) in enumerate(zip(self.lengths[group], count, strict=True)):
                self.positions[group][row, start : start + size] = positions[row, :size]
        for store, new in self._stores(group, count, texts):
            self.lengths[store] = self.lengths[store] + new

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens of every group; they must have been generated: text, not pruned."""
        self.lengths = [length - count for length in self.lengths]

    def rollback_to(self, lengths: Sequence[Ints]) -> None:
        """Forget what was written since the groups had these lengths."""
        self.lengths = list(lengths)

    def _stores(self, group: int, whole: _T, texts: _T) -> list[tuple[int, _T]]:
        """What belongs to a group's memory, and what to that of its heads of text, where it has them."""
        both = [(group, whole), (group + self.groups, texts)]
        return both if self._record.text_heads else both[:1]

    def _resize(self, store: int, capacity: int) -> None:
        record, old = self._record, self._bindings[store]
        filled, slots = int(self.lengths[store].max()), _rounded(capacity)
        new: dict[str, Array] = {}
        for name, heads in self._buffers[store].items():
            buffer = self._allocate((self.batch, heads, slots, record.head_dim), record.dtype)
            if filled:
                buffer[:, :, :filled] = old[f"past_{name}"][:, :, :filled]
            new[f"past_{name}"] = new[f"present_{name}"] = buffer
        if record.positions and store < self.groups:
            positions = np.zeros((self.batch, slots), np.int64)
            positions[:, :filled] = self.positions[store][:, :filled] if filled else 0
            self.positions[store] = positions
        self._bindings[store] = new
        self._union = None


def _buffers(record: CacheRecord) -> list[dict[str, int]]:
    """The names of each group's buffers and their heads: first of all tokens, then of text."""
    return [
        {
            f"{prefix}{part}_{layer}": record.heads(layer)[kind]
            for layer in group
            for part in ("key", "value")
            if record.heads(layer)[kind]
        }
        for kind, prefix in enumerate(("", "text_") if record.text_heads else ("",))
        for group in record.groups
    ]


def allocate_numpy(shape: Sequence[int], dtype: str) -> Array:
    """Zeros in host memory: a graph may multiply unused slots by zero, so they must not hold NaN."""
    return np.zeros(shape, dtype=dtype)


def _rounded(capacity: int) -> int:
    return -(-capacity // _STEP) * _STEP
