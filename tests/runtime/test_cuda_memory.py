"""A GPU's memory beside numpy's: views, copies, zeros, the way to the host. On the double: no GPU has run."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from doubles.cudart import Cudart
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.runtime.arrays import Array
from foveate.runtime.cache import KVCache, allocate_numpy
from foveate.runtime.cuda.device import Device
from foveate.runtime.cuda.memory import DeviceArray, rows_of
from foveate.runtime.errors import BackendError, DeviceMemoryError, UsageError
from foveate.runtime.manifest import CacheRecord
from foveate.runtime.scheduler.slots import SlotCache


@pytest.fixture
def device(cudart: Cudart) -> Iterator[Device]:
    made = Device()
    yield made
    made.close()


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def key_of(axis: int, size: int, draw: st.DrawFn) -> slice | int:
    start = draw(st.integers(0, size - 1))
    if draw(st.booleans()) and axis:
        return start
    return slice(start, draw(st.integers(start, size)))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_copies_between_views_are_numpy_s(device: Device, data: st.DataObject) -> None:
    """Any two equal views of any two arrays of up to four axes."""
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    other = [size + data.draw(st.integers(0, 3)) for size in shape]
    keys = tuple(
        data.draw(st.composite(lambda draw, i=i, n=n: key_of(i, n, draw))()) for i, n in enumerate(shape)
    )
    dtype = data.draw(st.sampled_from(["float32", "float16", "int64", "bool"]))
    mine, host = device.upload(numbers(tuple(shape), dtype)), numbers(tuple(shape), dtype)
    target, wanted = device.allocate(other, dtype), np.zeros(other, dtype)
    target[keys], wanted[keys] = mine[keys], host[keys]
    assert np.array_equal(np.asarray(target), wanted)
    assert np.array_equal(mine[keys].to_host(), host[keys])
    target[keys] = 0
    wanted[keys] = 0
    assert np.array_equal(np.asarray(target), wanted)
    mine[keys] = np.zeros_like(host[keys])
    host[keys] = 0
    assert np.array_equal(np.asarray(mine), host)


def test_the_caches_copies_are_one_rectangle_each() -> None:
    """What a cache copies when it grows or takes a row: as many calls as buffers, whatever the heads."""
    strides = lambda slots: (8 * slots * 64 * 2, slots * 64 * 2, 128, 2)  # noqa: E731
    grown = list(rows_of((2, 8, 40, 64), strides(256), strides(128), 2))
    assert [each.height for each in grown] == [16]
    assert grown[0].width == 40 * 64 * 2
    placed = list(rows_of((8, 40, 64), strides(256)[1:], strides(128)[1:], 2))
    assert [each.height for each in placed] == [8]
    whole = list(rows_of((4, 8, 64, 64), strides(64), strides(64), 2))
    assert [(each.height, each.width) for each in whole] == [(1, 4 * 8 * 64 * 64 * 2)]
    assert not list(rows_of((2, 0, 3), (24, 12, 4), (24, 12, 4), 4))


def test_what_cannot_be_done_is_refused(device: Device) -> None:
    memory = device.allocate((4, 6), "float32")
    with pytest.raises(
        BackendError, match=r"another shape or type.*\[4, 5\] of float32.*\[4, 6\] of float32"
    ):
        memory[...] = device.allocate((4, 5), "float32")
    with pytest.raises(BackendError, match="of float16"):
        memory[...] = device.allocate((4, 6), "float16")
    with pytest.raises(BackendError, match="of float64"):
        memory[...] = np.zeros((4, 6))
    with pytest.raises(TypeError, match="not filled with 1"):
        memory[0] = 1
    with pytest.raises(TypeError, match="steps of 1"):
        memory[::2]
    with pytest.raises(TypeError, match="whole numbers and slices"):
        memory[np.arange(2)]
    with pytest.raises(IndexError):
        memory[4]
    with pytest.raises(ValueError, match="cannot be seen"):
        memory[:, :3].reshape(12)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(memory, copy=False)


def test_the_host_may_write_again_at_once_and_large_arrays_pass(device: Device) -> None:
    """Copies still wait when the source changes: it was staged, or taken aside by CUDA (12 MB)."""
    small, large = numbers((5, 5)), np.ones((3, 1024, 1024), np.float32)
    there = [device.upload(small), device.upload(large)]
    small[...], large[...] = -1, -1
    assert np.array_equal(there[0].to_host(), numbers((5, 5)))
    assert (there[1].to_host() == 1).all()
    many = [device.upload(np.full(1 << 18, i, np.float32)) for i in range(20)]  # 20 MB through 8 MB
    assert [each.to_host()[-1] for each in many] == list(range(20))
    first, second = device.download(there[0], there[1])
    assert first[4, 4] == 24
    assert second[2, 1, 1] == 1


def test_bfloat16_is_its_bits_on_the_host(device: Device) -> None:
    memory = device.allocate((2, 3), "bfloat16")
    assert (memory.itemsize, memory.nbytes) == (2, 12)
    memory[0] = np.full(3, 0x3F80, np.uint16)  # 1.0
    assert memory.to_host().dtype == np.uint16
    assert memory.to_host().tolist() == [[0x3F80] * 3, [0] * 3]
    assert allocate_numpy((2,), "bfloat16").dtype == np.uint16


def test_views_keep_memory_and_the_last_one_gives_it_back(device: Device, cudart: Cudart) -> None:
    memory = device.allocate((4, 4), "float32")
    block, view = weakref.ref(memory.owner), memory[1:, 2]
    raw = memory.view("uint8", (64,))
    del memory
    assert block() is not None
    del view
    assert block() is not None
    del raw
    gc.collect()
    assert block() is None
    assert device.used_bytes == 0


def test_equal_caches_get_equal_addresses_again(device: Device) -> None:
    """What was recorded for a cache holds for the next one of its size, whatever order they went in."""

    def made() -> list[int]:
        cache = [device.allocate((1, 2, 64, 8), "float16") for _ in range(6)]
        return [each.address for each in cache]

    made()
    assert made() == made() == made()


def test_out_of_memory_says_what_was_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what had been kept for later is given up first."""
    from doubles import cudart as double

    double.install(monkeypatch, Cudart(memory=32 << 20))
    device = Device()
    spare = device.allocate((1 << 20,), "uint8")
    del spare
    held = device.allocate((24 << 20,), "uint8")
    with pytest.raises(
        DeviceMemoryError, match=r"8\.4 MB free of 33\.6, 25\.2 in use\. Wanted: 16\.8 MB more"
    ):
        device.allocate((16 << 20,), "uint8")
    del held
    gc.collect()
    both = device.allocate((24 << 20,), "uint8"), device.allocate((15 << 19,), "uint8")
    assert both[1].nbytes == 15 << 19  # 7.5 MB: more than there is beside the spare one


def test_a_recording_replays_and_a_broken_one_leaves_the_stream_usable(
    device: Device, cudart: Cudart
) -> None:
    memory = device.upload(numbers((10,)))
    with device.stream.capture() as captured:
        memory[5:] = memory[:5]
    assert memory.to_host()[5] == 5
    graph = captured.taken()
    graph.launch()
    assert memory.to_host()[5:].tolist() == [0, 1, 2, 3, 4]
    with (
        pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"),
        device.stream.capture() as broken,
    ):
        memory.to_host()
    with pytest.raises(BackendError, match="nothing was recorded"):
        broken.taken()
    forgiven = contextlib.suppress(BackendError)
    with pytest.raises(BackendError, match="Invalidated"), device.stream.capture(), forgiven:
        device.allocate((3 << 20,), "float32")
    memory[...] = 0
    assert memory.to_host().sum() == 0
    graph.close()
    with pytest.raises(BackendError, match="after it was closed"):
        graph.launch()
    assert cudart.launches == 1


def test_a_second_gpu_is_set_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from doubles import cudart as double

    machine = double.install(monkeypatch, Cudart(devices=2))
    device, seen = Device(1), []

    def work() -> None:
        machine.cudaSetDevice(0)  # what a thread starts with
        device.allocate((4,), "float32")
        seen.append(machine.cudaGetDevice()[1])

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [1, 1]
    with pytest.raises(UsageError, match=r"no such GPU.*Found: 2\. Wanted: 0 to 1"):
        Device(2)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (lambda: Cudart(driver=None), "cudaErrorInsufficientDriver.*install NVIDIA's driver"),
        (lambda: Cudart(devices=0), "cudaErrorNoDevice.*docker run --gpus all"),
    ],
)
def test_machines_without_a_gpu_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, machine: Callable[[], Cudart], said: str
) -> None:
    from doubles import cudart as double

    double.install(monkeypatch, machine())
    with pytest.raises(BackendError, match=said):
        Device()


# --- caches -------------------------------------------------------------------------------------------------

RECORD = CacheRecord(dtype="float16", num_kv_heads=2, head_dim=4, groups=((0,), (1, 2)))


def filled(cache: KVCache, tokens: int, seed: int) -> None:
    for group in range(2):
        cache.reserve(group, tokens, tokens)
        for name, memory in cache.memory(group).items():
            values = np.random.default_rng([seed, *name.encode()]).random((1, 2, tokens, 4), np.float32)
            memory[:, :, :tokens] = values.astype(np.float16)
        where = np.arange(tokens)[None]
        cache.advance(group, np.array([tokens]), np.ones((1, tokens), bool), where)


def read(memory: object, tokens: int) -> Array:
    part = memory[:, :, :tokens]  # type: ignore[index]
    return np.asarray(part)


def test_caches_grow_move_and_end_alike_on_both_memories(device: Device) -> None:
    """The same life of caches over numpy and over the device leaves the same numbers in every used slot."""
    ends = []
    for allocate in (allocate_numpy, device.allocate):
        slots = SlotCache(RECORD, 3, allocate)
        for seed, tokens in enumerate((5, 21, 12)):
            cache = KVCache(RECORD, 1, allocate)
            filled(cache, tokens, seed)
            cache.fit(40)
            assert slots.place(cache, 3) == seed
        slots.remove(0, wipe=True)
        slots.reserve(0, 60, 60)
        slots.reserve(1, 60, 60)
        views = slots.all_bindings()
        ends.append({name: read(memory, 12) for name, memory in views.items()})
    assert ends[0].keys() == ends[1].keys()
    assert all(np.array_equal(value, ends[1][name]) for name, value in ends[0].items())
    assert ends[0]["past_key_1"][0].any()


def test_a_backend_that_refuses_a_size_is_asked_with_what_is_needed() -> None:
    def at_most(store: int, needed: int) -> int:
        if needed > 32:
            raise BackendError("too many", found=str(needed), wanted="32")
        return 32

    cache = KVCache(RECORD, 1, allocate_numpy, at_most)
    filled(cache, 30, 0)
    assert cache.capacity(1) == 32
    cache.fit(2)
    with pytest.raises(BackendError, match="Found: 33"):
        cache.reserve(0, 3, 3)
    slots = SlotCache(RECORD, 2, allocate_numpy, at_most)
    slots.place(cache, 0)
    with pytest.raises(BackendError, match="Found: 34"):
        slots.reserve(1, 4, 4)


def test_device_arrays_say_what_they_are(device: Device) -> None:
    memory = device.allocate((3, 4), "float16")
    assert (len(memory), memory.ndim, memory.size, memory.nbytes) == (3, 2, 12, 24)
    assert repr(memory).startswith("DeviceArray([3, 4], float16, at 0x")
    assert memory.address % 256 == 0
    assert isinstance(memory[-1], DeviceArray)
    assert memory[-1].shape == (4,)
    assert np.asarray(memory, np.float64).dtype == np.float64
