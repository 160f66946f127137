"""Attention in which a visual row sees the neighbours in its image's grid, and the text before it (YOPO).

The rows of a tile of the grid are queries together, the rows around the tile are their keys. So the products
grow with the number of visual rows, not with its square; what a tile takes too much is masked.

    w = 5, a tile of 4 x 4 (o): its keys are the tile and two rows and columns around it, 8 x 8
      . . . . . . . .
      . . . . . . . .
      . . o o o o . .

Text rows see everything before them, as ever. Which rows form a tile is the host's choice and changes nothing
but the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.export.blocks.compaction import gather_rows
from foveate.export.blocks.visual_skipping import TextRows


@dataclass(frozen=True)
class Tiles:
    """Tiles of visual rows, as the host gives them.

    Attributes:
        query: `[b, n, q]` rows of the chunk in each of n tiles; -1 is padding.
        near: `[b, n, k]` rows in and around each tile; -1 is padding.
        place: `[b, s]`, where each visual row stands in `query`, flattened.
        cell: `[b, s, 3]`: image, row and column of each visual row.
        past: `[b, p]` cache slots of text from earlier chunks; -1 is padding.
    """

    query: Tensor
    near: Tensor
    place: Tensor
    cell: Tensor
    past: Tensor


@dataclass(frozen=True)
class Sight:
    """Who sees what in a chunk: rows and slots, with masks for what they hold too much.

    Attributes:
        query: `[b, n, q]` rows of the chunk in each of n tiles.
        near: `[b, n, k]` rows in and around each tile.
        sees_near: bool `[b, n, q, k]`.
        slots: `[b, t]` cache slots of all text, that of this chunk last.
        sees_slots: bool `[b, n, q, t]`.
        place: `[b, s]`, where each visual row stands in `query`, flattened.
        text_sees: bool `[b, u, capacity]`: the slots that text rows see.
    """

    query: Tensor
    near: Tensor
    sees_near: Tensor
    slots: Tensor
    sees_slots: Tensor
    place: Tensor
    text_sees: Tensor

    @staticmethod
    def of(
        tiles: Tiles,
        text: TextRows,
        length: Tensor,
        cache_length: Tensor,
        capacity: int,
        window: int,
        both_ways: bool,
    ) -> Sight:
        """`length [b]` of the chunk, `cache_length [b]` and `capacity` of the segment's caches.

        `both_ways`: neighbours behind a row are seen, too.
        """
        query, near = _from_zero(tiles.query), _from_zero(tiles.near)
        own = text.index + cache_length[:, None]  # b u, the text's own slots
        new = torch.arange(own.shape[1])[None, :] < text.length[:, None]
        earlier = (text.index[:, None, None, :] < query[:, :, :, None]) & new[:, None, None, :]  # b n q u
        known = (tiles.past >= 0)[:, None, None, :].expand(-1, query.shape[1], query.shape[2], -1)
        slot = torch.arange(capacity)[None, None, :]
        filled = slot < (cache_length + length)[:, None, None]
        sees = _neighbours(tiles.cell, query, near, window // 2) & (tiles.near >= 0)[:, :, None, :]
        if not both_ways:
            sees = sees & (near[:, :, None, :] <= query[:, :, :, None])
        return Sight(
            query=query,
            near=near,
            sees_near=sees,
            slots=torch.cat([_from_zero(tiles.past), own], dim=1),
            sees_slots=torch.cat([known, earlier], dim=3),
            place=tiles.place,
            text_sees=(slot <= own[:, :, None]) & filled,
        )

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, cache: tuple[Tensor, Tensor], scale: float
    ) -> Tensor:
        """Mixed values `[b, s, h * e]` of the visual rows; the others' mean nothing.

        Args:
            query: `[b, s, h * e]`, rotated.
            key: `[b, s, g * e]`, rotated.
            value: `[b, s, g * e]`.
            cache: keys and values `[b, g, capacity, e]` with this chunk's in it.
            scale: of the softmax.
        """
        b, n, q = self.query.shape
        g, e = cache[0].shape[1], cache[0].shape[3]
        asks = gather_rows(query, self.query.reshape(b, n * q)).reshape(b, n, q, g, -1, e)
        asks = asks.permute(0, 3, 1, 4, 2, 5)  # b n q g r e -> b g n r q e
        r = asks.shape[3]
        tiled = asks.reshape(b, g, n, r * q, e)
        flat = asks.reshape(b, g, n * r * q, e)
        keys, values = (self._around(x, g, e) for x in (key, value))  # b g n k e
        old_keys, old_values = (self._text(x) for x in cache)  # b g t e
        scores = torch.cat(
            [
                _masked(torch.matmul(tiled, keys.transpose(3, 4)).reshape(b, g, n, r, q, -1), self.sees_near),
                _masked(
                    torch.matmul(flat, old_keys.transpose(2, 3)).reshape(b, g, n, r, q, -1), self.sees_slots
                ),
            ],
            dim=5,
        )
        share = torch.softmax(scores * scale, dim=5)
        k = self.near.shape[2]
        of_near = torch.matmul(share[..., :k].reshape(b, g, n, r * q, k), values)  # b g n (r q) e
        of_text = torch.matmul(share[..., k:].reshape(b, g, n * r * q, -1), old_values)  # b g (n r q) e
        mixed = of_near.reshape(b, g, n, r, q, e) + of_text.reshape(b, g, n, r, q, e)
        rows = mixed.permute(0, 2, 4, 1, 3, 5).reshape(b, n * q, g * r * e)  # b g n r q e -> b (n q) (g r e)
        return gather_rows(rows, self.place)

    def _around(self, x: Tensor, g: int, e: int) -> Tensor:
        b, n, k = self.near.shape
        rows = gather_rows(x, self.near.reshape(b, n * k)).reshape(b, n, k, g, e)
        return rows.permute(0, 3, 1, 2, 4)  # b n k g e -> b g n k e

    def _text(self, cache: Tensor) -> Tensor:
        index = self.slots[:, None, :, None].expand(-1, cache.shape[1], -1, cache.shape[3])
        return torch.gather(cache, 2, index)  # b g capacity e -> b g t e


def _from_zero(index: Tensor) -> Tensor:
    """Padding points at the first row, and is masked where it matters."""
    return torch.where(index < 0, 0, index)


def _neighbours(cell: Tensor, query: Tensor, near: Tensor, reach: int) -> Tensor:
    """Bool `[b, n, q, k]`: of one image, and at most `reach` rows and columns apart."""

    def cells(rows: Tensor) -> Tensor:
        b, n, m = rows.shape
        return gather_rows(cell, rows.reshape(b, n * m)).reshape(b, n, m, 3)

    apart = torch.abs(cells(query)[:, :, :, None, :] - cells(near)[:, :, None, :, :])  # b n q k 3
    return (apart[..., 0] == 0) & (apart[..., 1] <= reach) & (apart[..., 2] <= reach)


def _masked(scores: Tensor, sees: Tensor) -> Tensor:
    """`[b, g, n, r, q, k]` under a mask `[b, n, q, k]`; finite, so that padding has no NaN."""
    return torch.where(sees[:, None, :, None], scores, -1e30)
