"""Key and value memory of the decoder's layers, in groups of equal length.

Behind a cut there are fewer tokens, so the layers of each segment share a length of their own:

    group 0 (layers 0, 1)     ############################......   28 tokens, capacity 34
    group 1 (layers 2 to 5)   ############......                   12 tokens, capacity 18

Models with a window of attention also need to know where the cached tokens stand: `past_position_0`, ... are
kept by the host, which knows who survived each cut.

A graph reads `past_*` and writes `present_*`; both names are bound to the same memory, so a token is written
in place and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foveate.runtime.arrays import Array, Arrays, Ints, ints
from foveate.runtime.manifest import CacheRecord

Allocate = Callable[[Sequence[int], str], Array]
_STEP = 16


class KVCache:
    """Buffers `[b, g, capacity, head_dim]` of all layers, and how much of each group is filled.

    `lengths[i]` int64 `[b]` counts the tokens of group `i`; `positions[i]` int64 `[b, capacity]` are theirs
    (kept only for models that need them). Slots beyond the length hold anything.
    """

    def __init__(self, record: CacheRecord, batch: int, allocate: Allocate) -> None:
        self._record = record
        self._allocate = allocate
        self.batch = batch
        self.lengths: list[Ints] = [ints([0] * batch) for _ in record.groups]
        self.positions: list[Ints] = [ints([]).reshape(0, 0)] * len(record.groups)
        self._bindings: list[dict[str, Array]] = [{} for _ in record.groups]
        self._union: dict[str, Array] | None = None

    @property
    def groups(self) -> int:
        """Number of groups, one more than decoder cuts."""
        return len(self.lengths)

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
        feeds = {f"cache_length_{i}": length for i, length in enumerate(self.lengths)}
        if self._record.positions:
            feeds |= {f"past_position_{i}": positions for i, positions in enumerate(self.positions)}
        return feeds

    def reserve(self, group: int, extra: int) -> None:
        """Make room for `extra` more tokens in every row of a group; what is in it stays."""
        needed = int(self.lengths[group].max()) + extra
        if needed > self.capacity(group):
            # Half again as much, so that growing by single tokens moves the memory rarely.
            self._resize(group, max(needed, self.capacity(group) * 3 // 2))

    def fit(self, extra: int) -> None:
        """Size every group for `extra` more tokens. Frees what a prompt needed before a cut shortened it."""
        for group in range(self.groups):
            needed = _rounded(int(self.lengths[group].max()) + extra)
            if not needed <= self.capacity(group) <= 2 * needed:
                self._resize(group, needed)

    def advance(self, group: int, count: Ints, positions: Ints) -> None:
        """A run has written `count [b]` tokens behind the filled slots: the first of `positions [b, s]`."""
        if self._record.positions:
            for row, (start, size) in enumerate(zip(self.lengths[group], count, strict=True)):
                self.positions[group][row, start : start + size] = positions[row, :size]
        self.lengths[group] = self.lengths[group] + count

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens of every group; they must have been generated, not pruned."""
        self.lengths = [length - count for length in self.lengths]

    def rollback_to(self, lengths: Sequence[Ints]) -> None:
        """Forget what was written since the groups had these lengths."""
        self.lengths = list(lengths)

    def _resize(self, group: int, capacity: int) -> None:
        record, old = self._record, self._bindings[group]
        shape = (self.batch, record.num_kv_heads, _rounded(capacity), record.head_dim)
        filled = int(self.lengths[group].max())
        new: dict[str, Array] = {}
        for layer in record.groups[group]:
            for part in ("key", "value"):
                buffer = self._allocate(shape, record.dtype)
                if filled:
                    buffer[:, :, :filled] = old[f"past_{part}_{layer}"][:, :, :filled]
                new[f"past_{part}_{layer}"] = new[f"present_{part}_{layer}"] = buffer
        if record.positions:
            positions = np.zeros((self.batch, shape[2]), np.int64)
            positions[:, :filled] = self.positions[group][:, :filled] if filled else 0
            self.positions[group] = positions
        self._bindings[group] = new
        self._union = None


def allocate_numpy(shape: Sequence[int], dtype: str) -> Array:
    """Zeros in host memory: a graph may multiply unused slots by zero, so they must not hold NaN."""
    return np.zeros(shape, dtype=dtype)


def _rounded(capacity: int) -> int:
    return -(-capacity // _STEP) * _STEP
