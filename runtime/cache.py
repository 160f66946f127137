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
from typing import Protocol

import numpy as np

from foveate.runtime.arrays import Array, Bindings, Ints, Memory, host_dtype, ints
from foveate.runtime.manifest import CacheRecord

# Two methods of a backend, see there.
Allocate = Callable[[Sequence[int], str], Memory]
Capacity = Callable[[int, int], int]
_STEP = 16


class Bound(dict[str, Memory]):
    """Bindings. Unlike a plain dictionary it can be referred to weakly: who remembers it keeps no memory."""


class Cache(Protocol):
    """What running a chunk needs of a cache; its methods are those of `KVCache`."""

    @property
    def groups(self) -> int:
        """See `KVCache.groups`."""
        ...

    def bindings(self, group: int) -> Bindings:
        """See `KVCache.bindings`."""
        ...

    def all_bindings(self) -> Bindings:
        """See `KVCache.all_bindings`."""
        ...

    def feeds(self, *, visual: bool) -> dict[str, Array]:
        """See `KVCache.feeds`."""
        ...

    def reserve(self, group: int, extra: int, texts: int) -> None:
        """See `KVCache.reserve`."""
        ...

    def advance(self, group: int, count: Ints, is_text: np.ndarray, positions: Ints) -> None:
        """See `KVCache.advance`."""
        ...


class KVCache:
    """Buffers `[b, g, capacity, head_dim]` of all layers, and how much of each group is filled.

    `lengths[i]` int64 `[b]` counts the tokens of group `i`; `positions[i]` int64 `[b, capacity]` are theirs
    (kept only for models that need them). Slots beyond the length hold anything. Behind the groups, in
    `lengths` as everywhere inside, stand their heads of text, in the same order.
    """

    def __init__(
        self, record: CacheRecord, batch: int, allocate: Allocate, capacity: Capacity | None = None
    ) -> None:
        self._record = record
        self._allocate = allocate
        self._room = capacity or in_steps
        self.batch = batch
        self._buffers = memory_heads(record)
        self.lengths: list[Ints] = [ints([0] * batch) for _ in self._buffers]
        self.positions: list[Ints] = [ints([]).reshape(0, 0)] * len(record.groups)
        self._texts: list[Array] = [np.zeros((batch, 0), bool)] * len(record.groups)
        self._bindings: list[dict[str, Memory]] = [{} for _ in self._buffers]
        self._unions: dict[tuple[int, ...], dict[str, Memory]] = {}

    @property
    def groups(self) -> int:
        """Number of groups, one more than decoder cuts."""
        return len(self._record.groups)

    def capacity(self, group: int) -> int:
        """Slots of a group."""
        return next((buffer.shape[2] for buffer in self._bindings[group].values()), 0)

    def held(self, row: int) -> list[tuple[int, int]]:
        """Of each group: tokens of a row, and the bytes that their keys and values take in all its layers."""
        per_head = self._record.head_dim * host_dtype(self._record.dtype).itemsize
        sizes = [
            int(length[row]) * sum(buffers.values()) * per_head
            for length, buffers in zip(self.lengths, self._buffers, strict=True)
        ]
        return [
            (int(self.lengths[group][row]), sum(sizes[store] for store in self._of(group)))
            for group in range(self.groups)
        ]

    def memory(self, store: int) -> dict[str, Memory]:
        """The buffers of a group, or behind these of its heads of text, as `key_3`, `value_3`, ..."""
        return {name: self._bindings[store][f"past_{name}"] for name in self._buffers[store]}

    @property
    def reserved_bytes(self) -> int:
        """Memory of all keys and values, free slots included."""
        pairs = (buffers.items() for buffers in self._bindings)
        return sum(memory.nbytes for each in pairs for name, memory in each if name.startswith("past_"))

    def bindings(self, group: int) -> Bindings:
        """`past_key_3`, `present_key_3`, … of a group's layers to their memory.

        The same mapping object until the memory moves, so that a runner can tell whether to bind again.
        """
        return self._bound(self._of(group))

    def all_bindings(self) -> Bindings:
        """The bindings of all groups together, likewise the same object until memory moves."""
        return self._bound(range(len(self._bindings)))

    def _bound(self, stores: Sequence[int]) -> Bindings:
        key = tuple(stores)
        if key not in self._unions:
            self._unions[key] = Bound(
                {name: buffer for store in key for name, buffer in self._bindings[store].items()}
            )
        return self._unions[key]

    def _of(self, group: int) -> list[int]:
        """What belongs to a group: its memory, and that of its heads of text."""
        return list(range(group, len(self._buffers), self.groups))

    def feeds(self, *, visual: bool) -> dict[str, Array]:
        """`cache_length_0`, ... and, for models that need them, `past_position_0`, `past_text_0`, ...

        `visual`: whether the chunk has visual tokens; no others ask which slots hold text.
        """
        names = ("cache_length", "text_cache_length")
        all_names = [f"{name}_{i}" for name in names for i in range(self.groups)]
        feeds: dict[str, Array] = dict(zip(all_names, self.lengths, strict=False))
        if self._record.positions:
            feeds |= {f"past_position_{i}": positions for i, positions in enumerate(self.positions)}
        if self._record.text_slots:
            feeds |= self._text_slots(visual)
        return feeds

    def _text_slots(self, visual: bool) -> dict[str, Array]:
        """Slots of cached text `[b, p]`, -1 is padding; of one width for all groups."""
        pairs = [
            zip(marks, lengths, strict=True)
            for marks, lengths in zip(self._texts, self.lengths, strict=False)
        ]
        slots = [[np.flatnonzero(row[:end]) if visual else ints([]) for row, end in each] for each in pairs]
        width = max(1, *(len(row) for rows in slots for row in rows))
        out = np.full((self.groups, self.batch, width), -1, np.int64)
        for group, rows in enumerate(slots):
            for number, row in enumerate(rows):
                out[group, number, : len(row)] = row
        return {f"past_text_{group}": out[group] for group in range(self.groups)}

    def reserve(self, group: int, extra: int, texts: int) -> None:
        """Make room for `extra` more tokens in every row of a group, `texts` of them text.

        What is in it stays.
        """
        for store, new in zip(self._of(group), (extra, texts), strict=False):
            needed = int(self.lengths[store].max()) + new
            if self._buffers[store] and needed > self.capacity(store):
                self._room(store, needed)  # refuses by this number, where there is a limit
                # Half again as much, so that growing by single tokens moves the memory rarely.
                self._resize(store, max(needed, self.capacity(store) * 3 // 2))

    def fit(self, extra: int) -> None:
        """Size every group for `extra` more tokens. Frees what a prompt needed before a cut shortened it."""
        for store, buffers in enumerate(self._buffers):
            if not buffers:
                continue
            needed = self._room(store, int(self.lengths[store].max()) + extra)
            if not needed <= self.capacity(store) <= 2 * needed:
                self._resize(store, needed)

    def advance(self, group: int, count: Ints, is_text: np.ndarray, positions: Ints) -> None:
        """A run has written `count [b]` tokens behind the filled slots: the first of `positions [b, s]`.

        `is_text` bool `[b, s]` marks the text among them.
        """
        marks, needed = self._texts[group], int((self.lengths[group] + count).max())
        if self._record.text_slots and marks.shape[1] < needed:
            # Not with the buffers: a group whose heads all hold text only has none.
            shape = (self.batch, rounded(needed * 3 // 2))
            self._texts[group] = _longer(marks, marks.shape[1], shape, np.bool_)
        for row, (start, size) in enumerate(zip(self.lengths[group], count, strict=True)):
            if self._record.positions:
                self.positions[group][row, start : start + size] = positions[row, :size]
            if self._record.text_slots:
                self._texts[group][row, start : start + size] = is_text[row, :size]
        texts = ints((is_text & (np.arange(is_text.shape[1])[None, :] < count[:, None])).sum(axis=1))
        for store, new in zip(self._of(group), (count, texts), strict=False):
            self.lengths[store] = self.lengths[store] + new

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens of every group; they must have been generated: text, not pruned."""
        self.lengths = [length - count for length in self.lengths]

    def rollback_to(self, lengths: Sequence[Ints]) -> None:
        """Forget what was written since the groups had these lengths."""
        self.lengths = list(lengths)

    def _resize(self, store: int, capacity: int) -> None:
        record, old = self._record, self._bindings[store]
        filled, slots = int(self.lengths[store].max()), self._room(store, capacity)
        new: dict[str, Memory] = {}
        for name, heads in self._buffers[store].items():
            buffer = self._allocate((self.batch, heads, slots, record.head_dim), record.dtype)
            if filled:
                buffer[:, :, :filled] = old[f"past_{name}"][:, :, :filled]
            new[f"past_{name}"] = new[f"present_{name}"] = buffer
        if record.positions and store < self.groups:
            self.positions[store] = _longer(self.positions[store], filled, (self.batch, slots), np.int64)
        self._bindings[store] = new
        self._unions = {key: union for key, union in self._unions.items() if store not in key}


def _longer(old: Array, filled: int, shape: tuple[int, int], dtype: type) -> Array:
    """Zeros `[b, slots]` with the filled slots of the old ones."""
    new: Array = np.zeros(shape, dtype)
    if filled:
        new[:, :filled] = old[:, :filled]
    return new


def memory_heads(record: CacheRecord) -> list[dict[str, int]]:
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
    return np.zeros(shape, dtype=host_dtype(dtype))


def in_steps(store: int, needed: int) -> int:
    """The capacity of memory that can be had in any size."""
    return rounded(needed)


def rounded(capacity: int) -> int:
    """The next size that is allocated."""
    return -(-capacity // _STEP) * _STEP
