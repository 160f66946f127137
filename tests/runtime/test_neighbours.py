"""Tiles hold every visual row once, with all of its neighbours near."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.runtime.neighbours import cells, tile


def test_cells_count_through_images() -> None:
    origin = np.array([[-1, 0, 5, 6, 11, -1]])
    assert cells(origin, (2, 3)).tolist() == [
        [[-1, -1, -1], [0, 0, 0], [0, 1, 2], [1, 0, 0], [1, 1, 2], [-1, -1, -1]]
    ]


@pytest.mark.parametrize("window", [1, 3, 5, 9, 31])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_every_row_once_with_its_neighbours(window: int, share: float) -> None:
    rng = np.random.default_rng(window)
    batch, grid = 3, (7, 9)
    kept = [
        np.sort(rng.permutation(2 * 63)[: max(1, int(126 * share * (row + 1) / batch))])
        for row in range(batch)
    ]
    origin = np.full((batch, 140), -1)
    for row, numbers in enumerate(kept):
        origin[row, np.sort(rng.permutation(140)[: len(numbers)])] = numbers
    cell, visual = cells(origin, grid), origin >= 0
    made = tile(cell, visual, window)
    for row in range(batch):
        flat = made.query[row].ravel()
        assert sorted(flat[flat >= 0].tolist()) == np.flatnonzero(visual[row]).tolist()
        assert (flat[made.place[row, visual[row]]] == np.flatnonzero(visual[row])).all()
        for own, near in zip(made.query[row], made.near[row], strict=True):
            for one in own[own >= 0]:
                apart = np.abs(cell[row] - cell[row, one])
                wanted = (apart[:, 0] == 0) & (apart[:, 1:].max(axis=1) <= window // 2) & visual[row]
                assert set(np.flatnonzero(wanted)) <= set(near.tolist())


def test_tiles_save_products() -> None:
    """24 x 24 visual tokens, window 5: a ninth of the pairs that all against all has."""
    origin = np.arange(576)[None]
    made = tile(cells(origin, (24, 24)), origin >= 0, 5)
    assert made.query.shape[1] * made.query.shape[2] * made.near.shape[2] * 9 == 576 * 576


def test_text_alone_is_one_empty_tile() -> None:
    made = tile(np.full((2, 4, 3), -1), np.zeros((2, 4), bool), 5)
    assert made.query.tolist() == made.near.tolist() == [[[-1]], [[-1]]]
