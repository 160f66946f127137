"""Kept visual tokens stand where they belong, and the roles are the rules'."""

from __future__ import annotations

from typing import Any

import make
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.runtime.arrays import ints
from foveate.runtime.chunk import Row, VisualTokens, arrange, collate
from foveate.runtime.report import Timings

IMAGE, VIDEO = 9, 8


def row(ids: list[int], user: list[int], kept: list[list[int]], n: int = 6, **options: Any) -> Row:
    """Images of one run of n visual tokens, unless `items` are given."""
    user_text = np.array([i in user for i in range(len(ids))])
    items = options.pop("items", [make.item(n) for _ in kept])
    return arrange(ints(ids), user_text, items, [ints(k) for k in kept], visual_ids=(IMAGE, VIDEO), **options)


def test_the_docstring_example() -> None:
    prompt = [1, 20, IMAGE, 30, 31, 32, 33, 40]
    compact = row(prompt, [4, 5, 6], [[1, 4]])
    assert compact.input_ids.tolist() == [1, 20, IMAGE, IMAGE, 30, 31, 32, 33, 40]
    assert compact.slots.tolist() == [-1, -1, 0, 1, -1, -1, -1, -1, -1]
    assert compact.roles.tolist() == [0, 0, 1, 1, 0, 2, 2, 2, 0]
    assert compact.positions.tolist() == list(range(9))
    assert compact.origin.tolist() == [-1, -1, 1, 4, -1, -1, -1, -1, -1]
    assert compact.query_index.tolist() == [4, 5, 6, 7, 8]
    assert compact.next_position == 9
    original = row(prompt, [4, 5, 6], [[1, 4]], mode="original")
    assert original.positions.tolist() == [0, 1, 3, 6, 8, 9, 10, 11, 12]
    assert original.next_position == 13


def test_two_images_continue_each_other() -> None:
    prompt = row([1, IMAGE, 30, IMAGE, 31, 40], [2, 4], [[0, 5], [2]], first_slot=10, first_position=100)
    assert prompt.slots.tolist() == [-1, 10, 11, -1, 12, -1, -1]
    assert prompt.origin.tolist() == [-1, 0, 5, -1, 8, -1, -1]
    assert prompt.block.tolist() == [-1, 0, 0, -1, 1, -1, -1]
    assert prompt.roles.tolist() == [0, 1, 1, 2, 1, 2, 0]
    assert prompt.query_index.tolist() == [3, 5, 6]
    assert prompt.positions.tolist() == list(range(100, 107))
    assert prompt.next_position == 107


@pytest.mark.parametrize(
    ("ids", "user", "roles", "query"),
    [
        ([1, 30, 40], [1], [0, 0, 0], [-1]),  # no image: nothing to prune
        ([1, 30, IMAGE, 40, 41], [1], [0, 0, 1, 0, 0], [3, 4]),  # text before the image has no say
        ([1, IMAGE, 30, IMAGE, 40], [2], [0, 1, 2, 1, 0], [2, 4]),  # all text behind the first image asks
        ([1, IMAGE, 30], [2], [0, 1, 0], [2]),  # the last token is never pruned
        ([1, 30, IMAGE, 31, 40], [1, 3], [0, 0, 1, 2, 0], [3, 4]),  # text before an image stays
        ([30, IMAGE], [0], [0, 1], [-1]),  # nothing behind the image at all
    ],
)
def test_roles(ids: list[int], user: list[int], roles: list[int], query: list[int]) -> None:
    found = row(ids, user, [[3]] * ids.count(IMAGE))
    assert found.roles.tolist() == roles
    assert found.query_index.tolist() == query


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_prompt(data: st.DataObject) -> None:
    """Against a loop over the tokens."""
    n = data.draw(st.integers(1, 7))
    ids = data.draw(st.lists(st.sampled_from([1, 2, 3, IMAGE]), min_size=1, max_size=12))
    kept = [sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))) for token in ids if token == IMAGE]
    for mode in ("compact", "original"):
        found = row(ids, [], kept, n, mode=mode)
        wanted, position, image, slot = [], 0, 0, 0
        for token in ids:
            if token != IMAGE:
                wanted.append((token, -1, position, -1))
                position += 1
                continue
            for i, patch in enumerate(kept[image]):
                place = position + (patch if mode == "original" else i)
                wanted.append((IMAGE, slot, place, image * n + patch))
                slot += 1
            position += n if mode == "original" else len(kept[image])
            image += 1
        columns = (found.input_ids, found.slots, found.positions, found.origin)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == wanted
        assert found.next_position == position


# --- several runs, three axes -------------------------------------------------------------------------------

# Two tiles with a marker (40) between them; then an image of one run.
TILES, PLAIN = [3, 2], [4]
TILED = [1, 20, IMAGE, 40, IMAGE, 41, 30, IMAGE, 31, 50]


def test_runs_of_one_image() -> None:
    items = [make.item(*TILES), make.item(*PLAIN)]
    found = row(TILED, [6, 8], [[1, 3], [0, 3]], items=items)
    assert found.input_ids.tolist() == [1, 20, IMAGE, 40, IMAGE, 41, 30, IMAGE, IMAGE, 31, 50]
    assert found.origin.tolist() == [-1, -1, 1, -1, 3, -1, -1, 5, 8, -1, -1]
    assert found.block.tolist() == [-1, -1, 0, -1, 0, -1, -1, 1, 1, -1, -1]
    assert found.slots.tolist() == [-1, -1, 0, -1, 1, -1, -1, 2, 3, -1, -1]
    assert found.roles.tolist() == [0, 0, 1, 0, 1, 0, 2, 1, 1, 2, 0]
    # The marker between the runs does not ask; the one behind them does, like any word of the template.
    assert found.query_index.tolist() == [5, 6, 9, 10]
    assert found.positions.tolist() == list(range(11))
    original = row(TILED, [6, 8], [[1, 3], [0, 3]], items=items, mode="original")
    assert original.positions.tolist() == [0, 1, 3, 5, 6, 8, 9, 10, 13, 14, 15]
    assert original.next_position == 16


def test_a_run_may_lose_everything() -> None:
    items = [make.item(*TILES), make.item(*PLAIN)]
    for mode, positions, end in (
        ("compact", [0, 1, 2, 3, 4, 5, 6, 7, 8], 9),
        ("original", [0, 1, 5, 7, 8, 9, 11, 14, 15], 16),
    ):
        found = row(TILED, [6], [[4], [1]], items=items, mode=mode)
        assert found.input_ids.tolist() == [1, 20, 40, IMAGE, 41, 30, IMAGE, 31, 50]
        assert found.origin.tolist() == [-1, -1, -1, 4, -1, -1, 6, -1, -1]
        assert found.positions.tolist() == positions
        assert found.next_position == end
        assert found.query_index.tolist() == [4, 5, 7, 8]
    # Nothing is left of the second tile: the marker before it still stands inside the image.
    for mode in ("compact", "original"):
        found = row(TILED, [6], [[0], [1]], items=items, mode=mode)
        assert found.input_ids.tolist() == [1, 20, IMAGE, 40, 41, 30, IMAGE, 31, 50]
        assert found.query_index.tolist() == [4, 5, 7, 8]


def test_three_axes() -> None:
    """A picture of 2 x 3 tokens: time, row and column; what follows stands behind the largest of them."""
    grid = [[0, r, c] for r in range(2) for c in range(3)]
    items = [make.item(6, positions=grid, spans=[3])]
    found = row([1, VIDEO, 30, 31], [2], [[0, 2, 4]], items=items, mode="original", axes=3, first_position=10)
    wanted = [[10] * 3, [11, 11, 11], [11, 11, 13], [11, 12, 12], [14] * 3, [15] * 3]
    assert found.positions.tolist() == wanted
    assert found.next_position == 16
    batch = collate([found, row([1], [], [], axes=3)], [items, []], VisualTokens.none(4), Timings())
    assert batch.positions.shape == (2, 6, 3)
    assert batch.positions[0].tolist() == wanted
    assert not batch.positions[1].any()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_prompt_of_any_items(data: st.DataObject) -> None:
    """Several runs, several axes and both kinds of visual tokens, against a loop over tokens and axes."""
    axes = data.draw(st.sampled_from([1, 3]))
    sizes = data.draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=3))
    items, kept, ids = [], [], [1]
    for runs in sizes:
        numbers = st.integers(0, 5)
        n = sum(runs)
        positions = data.draw(
            st.lists(st.lists(numbers, min_size=axes, max_size=axes), min_size=n, max_size=n)
        )
        spans = data.draw(st.lists(st.integers(1, 6), min_size=len(runs), max_size=len(runs)))
        items.append(make.item(*runs, positions=positions, spans=spans))
        kept.append(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
        token = data.draw(st.sampled_from([IMAGE, VIDEO]))
        for number in range(len(runs)):
            ids += [40] * data.draw(st.integers(0, 2)) if number else []
            ids.append(token)
        ids += [30] * data.draw(st.integers(0, 2))
    modes = ("compact", "original") if axes == 1 else ("original",)
    for mode in modes:
        found = row(ids, [], kept, items=items, mode=mode, axes=axes)
        wanted, position, queue, before = [], 0, [], 0
        for number, item in enumerate(items):
            start = 0
            for size, span in zip(item.runs.tolist(), item.spans.tolist(), strict=True):
                queue.append((number, before, start, size, span))
                start += size
            before += start
        queue.reverse()
        for token in ids:
            if token not in (IMAGE, VIDEO):
                wanted.append((token, -1, -1, [position] * axes))
                position += 1
                continue
            number, first, start, size, span = queue.pop()
            mine = [k for k in kept[number] if start <= k < start + size]
            for place, k in enumerate(mine):
                offset = items[number].positions[k].tolist() if mode == "original" else [place]
                wanted.append((token, number, first + k, [position + o for o in offset]))
            position += span if mode == "original" else len(mine)
        positions = found.positions.reshape(-1, axes).tolist()
        columns = (found.input_ids.tolist(), found.block.tolist(), found.origin.tolist(), positions)
        assert list(zip(*columns, strict=True)) == wanted
        assert found.next_position == position
        slots = [place for place in found.slots.tolist() if place >= 0]
        assert slots == list(range(sum(map(len, kept))))
        everything = [list(range(item.visual_tokens)) for item in items]
        asking = _asking(row(ids, [], everything, items=items, mode=mode, axes=axes))
        query = [r for r, place in enumerate(_text_numbers(found)) if place in asking]
        assert found.query_index.tolist() == (query or [-1])


def _text_numbers(found: Row) -> list[int]:
    """The number of each text row among the text rows; -1 for visual ones."""
    text = (found.block < 0).tolist()
    return [sum(text[:r]) if is_text else -1 for r, is_text in enumerate(text)]


def _asking(whole: Row) -> set[int]:
    """Which text rows of an unpruned prompt ask: behind the last token of the first item, and in no item."""
    blocks = whole.block.tolist()
    count = max(blocks) + 1
    firsts = [blocks.index(i) for i in range(count)]
    lasts = [len(blocks) - 1 - blocks[::-1].index(i) for i in range(count)]
    return {
        place
        for r, place in enumerate(_text_numbers(whole))
        if place >= 0
        and count
        and r > lasts[0]
        and not any(f < r < last for f, last in zip(firsts, lasts, strict=True))
    }


def test_collate_pads_on_the_right() -> None:
    rows = [row([1, IMAGE, 30, 31, 40], [2, 3], [[0, 1]]), row([1, 30], [1], [])]
    visual = VisualTokens(np.zeros((2, 4), np.float32), ints([0, 1]), (ints([0, 1, 2, 3, 4, 5]),), ints([2]))
    batch = collate(rows, [[make.item(6)], []], visual, Timings())
    assert batch.input_ids.tolist() == [[1, IMAGE, IMAGE, 30, 31, 40], [1, 30, 0, 0, 0, 0]]
    assert batch.slots.tolist() == [[-1, 0, 1, -1, -1, -1], [-1] * 6]
    assert batch.roles.tolist() == [[0, 1, 1, 2, 2, 0], [0] * 6]
    assert batch.block.tolist() == [[-1, 0, 0, -1, -1, -1], [-1] * 6]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 0, 0, 0, 0]]
    assert batch.length.tolist() == [6, 2]
    assert batch.query_index.tolist() == [[3, 4, 5], [-1, -1, -1]]
    assert batch.next_position.tolist() == [6, 2]
