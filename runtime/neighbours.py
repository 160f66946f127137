"""Tiles of visual rows, for decoders in which these see their neighbours only.

    4 x 4 visual tokens in tiles of 2 x 2, window 3: tile 0 asks with 0 1 4 5, and is near 0 1 2 4 5 6 8 9 10

A tile's side is a matter of cost alone. It is about twice what a window reaches beyond it: small tiles have
many neighbours in proportion, large ones compare rows that are far apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foveate.runtime.arrays import Ints, ints

_SMALLEST = 4


class Tiling(NamedTuple):
    """`query` int64 `[b, n, q]` and `near` `[b, n, k]`, rows of the chunk, -1 is padding; `place` `[b, s]`,
    where each visual row stands in `query`, flattened.
    """

    query: Ints
    near: Ints
    place: Ints


def tile(cell: Ints, is_visual: np.ndarray, window: int) -> Tiling:
    """Tiles for visual rows of a chunk.

    Args:
        cell: int64 `[b, s, 3]`: image, row and column.
        is_visual: bool `[b, s]`.
        window: how many rows and columns a visual row sees, itself in the middle.
    """
    side, reach = max(_SMALLEST, window - 1), window // 2
    rows = [
        _row_tiles(cells, np.flatnonzero(mask), side, reach)
        for cells, mask in zip(cell, is_visual, strict=True)
    ]
    count = max(1, *(len(tiles) for tiles in rows))
    query, near = (_padded([[pair[i] for pair in tiles] for tiles in rows], count) for i in (0, 1))
    place = np.zeros(is_visual.shape, np.int64)
    for row, tiles in enumerate(rows):
        for number, (own, _) in enumerate(tiles):
            place[row, own] = number * query.shape[2] + np.arange(len(own))
    return Tiling(query, near, place)


def cells(origin: Ints, grid: tuple[int, int]) -> Ints:
    """Image, row and column `[b, s, 3]` of visual tokens `origin [b, s]`, counted through all images; -1 for
    text.
    """
    rows, columns = grid
    parts = np.stack([origin // (rows * columns), origin // columns % rows, origin % columns], axis=-1)
    return ints(np.where(origin[:, :, None] < 0, -1, parts))


def _row_tiles(cell: Ints, visual: Ints, side: int, reach: int) -> list[tuple[Ints, Ints]]:
    """(rows that ask, rows near them) of each tile of one sequence."""
    own = cell[visual]  # v 3
    corner = np.concatenate([own[:, :1], own[:, 1:] // side], axis=1)
    tiles = []
    for image, top, left in np.unique(corner, axis=0):
        inside = (corner == (image, top, left)).all(axis=1)
        low = np.array([image, top * side - reach, left * side - reach])
        high = np.array([image, (top + 1) * side - 1 + reach, (left + 1) * side - 1 + reach])
        around = ((own >= low) & (own <= high)).all(axis=1)
        tiles.append((visual[inside], visual[around]))
    return tiles


def _padded(rows: list[list[Ints]], count: int) -> Ints:
    width = max(1, *(len(each) for tiles in rows for each in tiles), 1)
    out = np.full((len(rows), count, width), -1, np.int64)
    for row, tiles in enumerate(rows):
        for number, each in enumerate(tiles):
            out[row, number, : len(each)] = each
    return out
