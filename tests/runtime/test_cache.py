"""The cache grows without losing anything, and moves only when it must."""

from __future__ import annotations

import numpy as np

from foveate.runtime.arrays import ints
from foveate.runtime.cache import KVCache, allocate_numpy
from foveate.runtime.manifest import CacheRecord

RECORD = CacheRecord(dtype="float32", num_kv_heads=2, head_dim=3, groups=((0,), (1, 2)))


def fill(cache: KVCache, group: int, count: int, value: float) -> None:
    """Write `count` tokens as a graph would."""
    cache.reserve(group, count, count)
    start = int(cache.lengths[group].max())
    for name, buffer in cache.bindings(group).items():
        if name.startswith("present"):
            buffer[:, :, start : start + count] = value
    text = np.ones((cache.batch, count), bool)
    cache.advance(group, ints([count] * cache.batch), text, ints([range(start, start + count)] * cache.batch))


def test_groups_have_lengths_of_their_own() -> None:
    cache = KVCache(RECORD, 1, allocate_numpy)
    fill(cache, 0, 20, 1.0)
    fill(cache, 1, 5, 2.0)
    assert [length.tolist() for length in cache.lengths] == [[20], [5]]
    assert cache.capacity(0) >= 20 > cache.capacity(1) >= 5
    parts = ("past_key", "past_value", "present_key", "present_value")
    assert set(cache.bindings(1)) == {f"{part}_{layer}" for part in parts for layer in (1, 2)}
    assert set(cache.all_bindings()) == set(cache.bindings(0)) | set(cache.bindings(1))


def test_past_and_present_are_the_same_memory() -> None:
    cache = KVCache(RECORD, 2, allocate_numpy)
    cache.reserve(0, 3, 3)
    memory = cache.bindings(0)
    assert memory["past_key_0"] is memory["present_key_0"]
    assert memory["past_key_0"] is not memory["past_value_0"]
    assert memory["past_key_0"].shape[:2] == (2, 2)


def test_growing_keeps_content_and_is_rare() -> None:
    cache = KVCache(RECORD, 1, allocate_numpy)
    moves = 0
    for step in range(300):
        before = cache.bindings(0)
        fill(cache, 0, 1, float(step))
        moves += cache.bindings(0) is not before
    np.testing.assert_array_equal(cache.bindings(0)["past_key_0"][0, 1, :300, 2], np.arange(300))
    assert moves < 12
    assert cache.all_bindings() is cache.all_bindings()


def test_fit_frees_what_the_prompt_needed() -> None:
    cache = KVCache(RECORD, 1, allocate_numpy)
    cache.reserve(1, 1000, 1000)
    fill(cache, 1, 10, 7.0)
    cache.fit(20)
    assert 30 <= cache.capacity(1) < 60
    np.testing.assert_array_equal(cache.bindings(1)["past_value_2"][:, :, :10], np.full((1, 2, 10, 3), 7.0))
    settled = cache.bindings(1)
    cache.reserve(1, 20, 20)
    cache.fit(20)
    assert cache.bindings(1) is settled


def test_rollback_overwrites() -> None:
    cache = KVCache(RECORD, 1, allocate_numpy)
    fill(cache, 0, 4, 1.0)
    fill(cache, 1, 2, 1.0)
    for group in (0, 1):
        fill(cache, group, 3, 2.0)
    cache.rollback(2)
    assert [length.tolist() for length in cache.lengths] == [[5], [3]]
    fill(cache, 1, 1, 3.0)
    assert cache.bindings(1)["past_key_1"][0, 0, :4, 0].tolist() == [1, 1, 2, 3]


def test_heads_of_text_have_memory_of_their_own() -> None:
    record = CacheRecord(
        dtype="float32",
        num_kv_heads=3,
        head_dim=8,
        groups=((0, 1), (2,)),
        text_heads=(0, 1, 3),
        text_slots=True,
    )
    cache = KVCache(record, 1, allocate_numpy)
    text = np.array([[True, False, False, True]])
    for group in (0, 1):
        cache.reserve(group, 4, 2)
        cache.advance(group, ints([4]), text, ints([range(4)]))
    shapes = {name: buffer.shape for name, buffer in cache.all_bindings().items() if name.startswith("past")}
    assert {name: shape[1] for name, shape in shapes.items() if "key" in name} == {
        "past_key_0": 3,
        "past_key_1": 2,
        "past_text_key_1": 1,
        "past_text_key_2": 3,
    }
    assert set(cache.bindings(1)) == {
        f"{when}_text_{part}_2" for when in ("past", "present") for part in ("key", "value")
    }
    feeds = cache.feeds(visual=True)
    assert feeds["text_cache_length_0"].tolist() == [2]
    assert feeds["cache_length_0"].tolist() == [4]
    assert feeds["past_text_0"].tolist() == [[0, 3]]
    assert cache.feeds(visual=False)["past_text_1"].tolist() == [[-1]]
    cache.rollback(1)
    assert cache.feeds(visual=True)["past_text_0"].tolist() == [[0]]
    assert [length.tolist() for length in cache.lengths] == [[3], [3], [1], [1]]


def test_bytes_that_are_held_and_reserved() -> None:
    cache = KVCache(RECORD, 2, allocate_numpy)
    assert (cache.held(0), cache.reserved_bytes) == ([(0, 0), (0, 0)], 0)
    fill(cache, 0, 20, 1.0)
    fill(cache, 1, 5, 2.0)
    token = 2 * 2 * 3 * 4  # key and value, heads, width, float32
    assert cache.held(1) == [(20, 20 * token), (5, 5 * 2 * token)]
    assert cache.reserved_bytes == 2 * token * (cache.capacity(0) + 2 * cache.capacity(1))
    # Layer 1 has a head of text alone: two texts of four tokens are in it.
    record = CacheRecord(**{**RECORD.model_dump(), "text_heads": (0, 1, 0)})
    cache = KVCache(record, 1, allocate_numpy)
    cache.reserve(1, 4, 2)
    cache.advance(1, ints([4]), np.array([[True, False, False, True]]), ints([range(4)]))
    head = 2 * 3 * 4
    assert cache.held(0) == [(0, 0), (4, (4 * 1 + 2 * 1 + 4 * 2) * head)]
