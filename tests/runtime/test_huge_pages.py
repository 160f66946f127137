"""Gathering memory into large pages changes no number, and makes nothing resident that was not."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest

from foveate.runtime import GenerateOptions, Pipeline, huge_pages, load
from foveate.runtime.errors import UsageError

LARGE = 2 << 20
MAPS = """\
55d000000000-55d000400000 rw-p 00000000 00:00 0                          [heap]
7f0000100000-7f0000500000 rw-p 00000000 00:00 0
7f0000600000-7f0000a00000 r--p 00000000 fe:00 1234                       /usr/lib/libc.so.6
7f0000a00000-7f0000e00000 rw-p 00000000 fe:00 1234                       /usr/lib/libc.so.6
7f0000e00000-7f0001200000 r-xp 00000000 00:00 0
7f0002000000-7f0002100000 rw-p 00000000 00:00 0
7f0003000000-7f0003800000 rw-s 00000000 00:01 77                         /dev/shm/shared
7ffc00000000-7ffc00400000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_private_memory_without_a_file() -> None:
    """In whole large pages: the second mapping has one and a half on either side."""
    assert list(huge_pages.anonymous(MAPS)) == [
        (0x55D000000000, 0x55D000400000),
        (0x7F0000200000, 0x7F0000400000),
    ]


def resident(memory: mmap.mmap) -> np.ndarray:
    """Which pages of a mapping are in memory, as the system tells."""
    pages = np.zeros(len(memory) // mmap.PAGESIZE, np.uint8)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    place = ctypes.c_void_p(pages.ctypes.data)
    assert not ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(memory)), place)
    return pages & 1


def in_large_pages() -> int:
    """Bytes of this process's own memory in large pages, as the system tells."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("AnonHugePages:"))
    return int(line.split()[1]) * 1024


def collapsed(start: int, size: int) -> int:
    """Asks the system itself for the whole large pages of some memory: bytes, 0 where it refuses."""
    first, last = -(-start // LARGE) * LARGE, (start + size) // LARGE * LARGE
    refused = ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), 25)
    return 0 if refused else last - first


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="Linux's /proc is read")
def test_numbers_stay_and_memory_does_not_grow() -> None:
    memory = mmap.mmap(-1, 8 * LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(memory, np.uint32)
    used = np.arange(len(numbers) // 2, dtype=np.uint32)
    numbers[: len(used)] = used
    numbers[-1] = 7  # one page of the last large one
    before = resident(memory)
    gathered = huge_pages.gather()
    assert gathered <= in_large_pages(), "what is counted is there"
    assert gathered >= collapsed(numbers.ctypes.data, used.nbytes), "what the system can do was done"
    np.testing.assert_array_equal(resident(memory), before)
    np.testing.assert_array_equal(numbers[: len(used)], used)
    assert numbers[-1] == 7


def test_answers_stay(
    bundles: dict[str, Path],
    pipelines: dict[tuple[str, str], Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(huge_pages, "gather", lambda gather=huge_pages.gather: asked.append(gather()))
    options = GenerateOptions(max_new_tokens=4)
    wanted = pipelines["plain", "fused"].generate("What?", (), options).token_ids
    load(bundles["plain"], check="none")
    assert not asked
    monkeypatch.setenv(huge_pages.SWITCH, "1")
    assert load(bundles["plain"], check="none").generate("What?", (), options).token_ids == wanted
    assert asked


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_says_yes_or_no(
    value: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(huge_pages.SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(huge_pages.SWITCH, value)
    assert huge_pages.wanted() is wanted


@pytest.mark.parametrize("value", ["2", "true", "yes", "1 "])
def test_other_words_are_refused_and_not_taken_for_no(
    value: str, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(huge_pages.SWITCH, value)
    with pytest.raises(UsageError, match=r"FOVEATE_HUGE_PAGES.*Wanted: 1.*To mend it: set it to 1, or unset"):
        load(bundles["plain"], check="none")
