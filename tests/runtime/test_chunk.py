"""Kept visual tokens stand where they belong, and the roles are the rules'."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.runtime.arrays import ints
from foveate.runtime.chunk import Row, VisualTokens, arrange, collate
from foveate.runtime.report import Timings

IMAGE = 9


def row(ids: list[int], user: list[int], kept: list[list[int]], n: int = 6, **options: object) -> Row:
    user_text = np.array([i in user for i in range(len(ids))])
    return arrange(ints(ids), user_text, [ints(k) for k in kept], n, image_token_id=IMAGE, **options)  # type: ignore[arg-type]


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


def test_collate_pads_on_the_right() -> None:
    rows = [row([1, IMAGE, 30, 31, 40], [2, 3], [[0, 1]]), row([1, 30], [1], [])]
    visual = VisualTokens(np.zeros((2, 4), np.float32), ints([0, 1]), ints([[0, 1, 2, 3, 4, 5]]), ints([2]))
    batch = collate(rows, [1, 0], visual, np.zeros((1, 3, 2, 2), np.float32), Timings())
    assert batch.input_ids.tolist() == [[1, IMAGE, IMAGE, 30, 31, 40], [1, 30, 0, 0, 0, 0]]
    assert batch.slots.tolist() == [[-1, 0, 1, -1, -1, -1], [-1] * 6]
    assert batch.roles.tolist() == [[0, 1, 1, 2, 2, 0], [0] * 6]
    assert batch.length.tolist() == [6, 2]
    assert batch.query_index.tolist() == [[3, 4, 5], [-1, -1, -1]]
    assert batch.next_position.tolist() == [6, 2]
