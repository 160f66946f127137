"""The caches of all sequences that are being decoded: rows of one batch without holes.

    row 0   ############......     A new sequence becomes the last row: what was read into a cache of its own
    row 1   ######............     is copied behind the others. When a row ends, the last one moves into its
    row 2   #########.........     place. So a step always runs the first rows, which are one piece of memory.
            ..................

As in `KVCache`, there is one memory for each layer, and layers of a segment share lengths. Rows only ever get
text, one token at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveate.runtime.arrays import Array, Bindings, Ints, Memory, ints
from foveate.runtime.cache import Allocate, Bound, Capacity, KVCache, in_steps, memory_heads
from foveate.runtime.manifest import CacheRecord


class SlotCache:
    """Memory `[slots, g, capacity, head_dim]` of all layers; the first `rows` rows hold sequences.

    It grows to the longest sequence and never moves but for that; `clear` gives it back.
    """

    def __init__(
        self, record: CacheRecord, slots: int, allocate: Allocate, capacity: Capacity | None = None
    ) -> None:
        self._record = record
        self._allocate = allocate
        self._room = capacity or in_steps
        self.slots = slots
        self.rows = 0
        self._heads = memory_heads(record)
        self.clear()

    def clear(self) -> None:
        """Forget all rows and give the memory back."""
        self.rows = 0
        self._lengths = [ints([0] * self.slots) for _ in self._heads]
        self._positions: list[Ints] = [np.zeros((self.slots, 0), np.int64)] * self.groups
        self._memory: list[dict[str, Memory]] = [{} for _ in self._heads]
        self._moved()

    @property
    def groups(self) -> int:
        """Number of groups, as of `KVCache`."""
        return len(self._record.groups)

    @property
    def reserved_bytes(self) -> int:
        """Memory of all rows, free ones included; pages that were never written are not resident."""
        # Copied first: another thread may ask while it grows.
        return sum(memory.nbytes for each in self._memory for memory in tuple(each.values()))

    def place(self, cache: KVCache, ahead: int) -> int:
        """Copy a sequence that was read into `cache` behind the others; gives its row.

        `ahead` tokens more are expected of it.
        """
        row = self.rows
        for store, lengths in enumerate(self._lengths):
            size = int(cache.lengths[store][0])
            self._grow(store, size + ahead)
            lengths[row] = size
            source = cache.memory(store) if size else {}
            for name, memory in source.items():
                self._memory[store][name][row, :, :size] = memory[0, :, :size]
            if self._record.positions and store < self.groups:
                self._positions[store][row, :size] = cache.positions[store][0, :size]
        self.rows += 1
        self._moved()
        return row

    def remove(self, row: int, *, wipe: bool = False) -> None:
        """Free a row; the last one takes its place. `wipe`: it may hold NaN, which unused slots must not."""
        last = self.rows - 1
        if wipe:
            for memory in (each for buffers in self._memory for each in buffers.values()):
                memory[row] = 0
        if row != last:
            for store, lengths in enumerate(self._lengths):
                size = int(lengths[last])
                lengths[row] = size
                for memory in self._memory[store].values():
                    memory[row, :, :size] = memory[last, :, :size]
                if self._record.positions and store < self.groups:
                    self._positions[store][row, :size] = self._positions[store][last, :size]
        self.rows = last
        self._moved()

    # --- what a decoder asks of a cache ---------------------------------------------------------------------

    def bindings(self, group: int) -> Bindings:
        """See `KVCache.bindings`; of the rows in use."""
        return self._bound(f"group {group}", range(group, len(self._memory), self.groups))

    def all_bindings(self) -> Bindings:
        """See `KVCache.all_bindings`."""
        return self._bound("all", range(len(self._memory)))

    def _bound(self, key: str, stores: Sequence[int]) -> Bindings:
        if key not in self._views:
            rows = {name: m[: self.rows] for store in stores for name, m in self._memory[store].items()}
            self._views[key] = Bound(
                {f"{when}_{name}": memory for name, memory in rows.items() for when in ("past", "present")}
            )
        return self._views[key]

    def feeds(self, *, visual: bool) -> dict[str, Array]:
        """See `KVCache.feeds`; the chunk never has visual tokens, so no slots of text are asked for."""
        names = [f"{name}_{i}" for name in ("cache_length", "text_cache_length") for i in range(self.groups)]
        feeds: dict[str, Array] = {
            name: lengths[: self.rows] for name, lengths in zip(names, self._lengths, strict=False)
        }
        if self._record.positions:
            feeds |= {f"past_position_{i}": rows[: self.rows] for i, rows in enumerate(self._positions)}
        if self._record.text_slots:
            none = np.full((self.rows, 1), -1, np.int64)
            feeds |= {f"past_text_{i}": none for i in range(self.groups)}
        return feeds

    def reserve(self, group: int, extra: int, texts: int) -> None:
        """See `KVCache.reserve`."""
        for store in range(group, len(self._memory), self.groups):
            needed = int(self._lengths[store][: self.rows].max()) + extra
            if needed > self._capacity(store):
                self._room(store, needed)  # refuses by this number, where there is a limit
                self._grow(store, needed * 3 // 2)

    def advance(self, group: int, count: Ints, is_text: np.ndarray, positions: Ints) -> None:
        """See `KVCache.advance`: every row has got one token of text."""
        if self._record.positions:
            rows = np.arange(self.rows)
            self._positions[group][rows, self._lengths[group][: self.rows]] = positions[:, 0]
        for store in range(group, len(self._memory), self.groups):
            self._lengths[store][: self.rows] += 1

    # --- memory ---------------------------------------------------------------------------------------------

    def _capacity(self, store: int) -> int:
        if store < self.groups and self._record.positions:
            return int(self._positions[store].shape[1])
        return next((memory.shape[2] for memory in self._memory[store].values()), 0)

    def _grow(self, store: int, needed: int) -> None:
        """Memory for `needed` tokens in every row of a store; what is in it stays."""
        if needed <= self._capacity(store):
            return
        self._moved()  # lets go of the old memory
        record, capacity = self._record, self._room(store, needed)
        filled = int(self._lengths[store][: self.rows].max(initial=0))
        self._resize(store, capacity, filled)
        if record.positions and store < self.groups:
            positions = np.zeros((self.slots, capacity), np.int64)
            positions[: self.rows, :filled] = self._positions[store][: self.rows, :filled]
            self._positions[store] = positions

    def _resize(self, store: int, capacity: int, filled: int) -> None:
        """Memory of all buffers of a store, one after the other; if there is not enough, as before.

        They are of one size at any time, or the steps of all other rows would fail with the one that is new.
        """
        buffers, before = self._memory[store], self._capacity(store)

        def move(name: str, slots: int) -> None:
            shape = (self.slots, self._heads[store][name], slots, self._record.head_dim)
            memory = self._allocate(shape, self._record.dtype)
            if self.rows and name in buffers:
                memory[: self.rows, :, :filled] = buffers[name][: self.rows, :, :filled]
            buffers[name] = memory

        try:
            for name in self._heads[store]:
                move(name, capacity)
        except Exception:
            for name, memory in tuple(buffers.items()):
                if not before:
                    del buffers[name]
                elif memory.shape[2] != before:
                    move(name, before)
            raise

    def _moved(self) -> None:
        """Rows or memory are others now: a runner has to bind again, and tells by the mapping's identity."""
        self._views: dict[str, dict[str, Memory]] = {}
