"""Rows of the batch's caches against lists that grow and shrink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.runtime.arrays import Array, ints
from foveate.runtime.cache import KVCache, allocate_numpy, memory_heads
from foveate.runtime.manifest import CacheRecord
from foveate.runtime.scheduler.slots import SlotCache

SIZES: dict[str, Any] = {"dtype": "float32", "num_kv_heads": 2, "head_dim": 4, "groups": ((0, 1), (2,))}
RECORDS = [
    CacheRecord(**SIZES, positions=True),
    # Layer 1 has a head that holds text only, layer 2 no others.
    CacheRecord(**SIZES, text_heads=(0, 1, 2), text_slots=True),
]
SLOTS = 4
Row = dict[str, np.ndarray]


def read(
    record: CacheRecord, lengths: tuple[int, int], texts: tuple[int, int], seed: int
) -> tuple[KVCache, Row]:
    """A cache that holds a prompt of random numbers, and these by name `[heads, tokens, 4]`."""
    cache, random, row = KVCache(record, 1, allocate_numpy), np.random.default_rng(seed), Row()
    for group, (size, text) in enumerate(zip(lengths, texts, strict=True)):
        cache.reserve(group, size, text)
        is_text = (np.arange(size) < text)[None]
        positions = ints(random.integers(0, 99, (1, size)))
        for name, memory in cache.bindings(group).items():
            if name.startswith("present_"):
                tokens = text if "text" in name else size
                row[name] = random.normal(size=(memory.shape[1], tokens, 4)).astype(np.float32)
                memory[0, :, :tokens] = row[name]
        cache.advance(group, ints([size]), is_text, positions)
        row[f"position_{group}"] = positions[0]
    return cache, row


def step(cache: SlotCache, rows: list[Row], seed: int) -> None:
    """Every row gets one token, as a graph would write it."""
    random = np.random.default_rng(seed)
    lengths = cache.feeds(visual=False)
    for group in range(2):
        cache.reserve(group, 1, 1)
        positions = ints(random.integers(0, 99, (len(rows), 1)))
        for name, memory in cache.bindings(group).items():
            if name.startswith("present_"):
                assert cache.bindings(group)[name.replace("present", "past")] is memory
                length = lengths[f"{'text_' if 'text' in name else ''}cache_length_{group}"].copy()
                new = random.normal(size=(len(rows), memory.shape[1], 1, 4)).astype(np.float32)
                for i, row in enumerate(rows):
                    memory[i, :, length[i]] = new[i, :, 0]
                    row[name] = np.concatenate([row[name], new[i]], axis=1)
        cache.advance(group, ints([1] * len(rows)), np.ones((len(rows), 1), bool), positions)
        for i, row in enumerate(rows):
            row[f"position_{group}"] = np.append(row[f"position_{group}"], positions[i])


def agree(cache: SlotCache, rows: list[Row]) -> None:
    assert cache.rows == len(rows)
    feeds, bound = cache.feeds(visual=False), cache.all_bindings()
    assert bound is cache.all_bindings()
    for i, row in enumerate(rows):
        for name, values in row.items():
            if name.startswith("position"):
                assert feeds[f"cache_length_{name[-1]}"][i] == len(values)
                if f"past_{name}" in feeds:
                    np.testing.assert_array_equal(feeds[f"past_{name}"][i, : len(values)], values)
            else:
                assert bound[name].shape[0] == len(rows)
                assert bound[name].flags.c_contiguous
                np.testing.assert_array_equal(bound[name][i, :, : values.shape[1]], values)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 20))
events = st.one_of(
    st.tuples(st.just("place"), sizes),
    st.tuples(st.just("remove"), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("wipe"), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("step"), st.integers(1, 5)),
)


@pytest.mark.parametrize("record", RECORDS, ids=["positions", "heads of text"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(events=st.lists(events, min_size=5, max_size=25))
def test_rows_keep_what_was_put_into_them(record: CacheRecord, events: list[tuple[str, Any]]) -> None:
    cache, rows = SlotCache(record, SLOTS, allocate_numpy), list[Row]()
    for seed, (event, value) in enumerate(events):
        if event == "place" and len(rows) < SLOTS:
            first, second = value
            second = min(first, second)  # behind a cut
            read_cache, row = read(record, (first, second), (min(3, first), min(2, second)), seed)
            assert cache.place(read_cache, 2) == len(rows)
            rows.append(row)
        elif event in ("remove", "wipe") and value < len(rows):
            cache.remove(value, wipe=event == "wipe")
            rows[value] = rows[-1]
            rows.pop()
        elif event == "step" and rows:
            for number in range(value):
                step(cache, rows, 100 * seed + number)
        agree(cache, rows)
    cache.clear()
    assert cache.rows == cache.reserved_bytes == 0


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("record", RECORDS, ids=["positions", "heads of text"])
def test_memory_that_is_not_there_harms_nobody(record: CacheRecord, rows: int) -> None:
    """A sequence for which there is no memory is refused; the others keep theirs, and go on."""
    left = [10**6]

    def allocate(shape: Sequence[int], dtype: str) -> Array:
        left[0] -= 1
        if left[0] == -1:
            raise MemoryError
        return allocate_numpy(shape, dtype)

    long, its_row = read(record, (90, 80), (60, 50), 7)
    buffers_made = sum(map(len, memory_heads(record)))
    assert buffers_made > 1
    for number in range(buffers_made):
        left[0] = 10**6
        cache, held = SlotCache(record, SLOTS, allocate), []
        for seed in range(rows):
            short, row = read(record, (9, 5), (3, 2), seed)
            cache.place(short, 1)
            held.append(row)
        left[0] = number
        with pytest.raises(MemoryError):
            cache.place(long, 2)
        agree(cache, held)
        for buffers in cache._memory:
            assert len({memory.shape[2] for memory in buffers.values()}) <= 1
        if held:
            step(cache, held, number)
        cache.place(long, 2)
        agree(cache, [*held, its_row])
