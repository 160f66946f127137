"""Patches side by side become one visual token: fewer tokens, wider ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PixelShuffle(nn.Module):
    """Tokens made of `side` x `side` patches: `[t, p, c] -> [1, t * m, side^2 * c]`, m = p / side^2.

    Tokens stand in raster order within their tile; the channels of a token are its patches' in raster order.
    """

    def __init__(self, grid: int, side: int) -> None:
        super().__init__()
        self.grid, self.side = grid // side, side

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[2]
        blocks = self._blocks(x).transpose(2, 3)  # t rows columns side side c
        return blocks.reshape(1, -1, self.side**2 * c)

    def pool(self, scores: Tensor) -> Tensor:
        """Patch scores `[t, p]` to token scores `[1, t * m]`: the mean of a token's patches."""
        return self._blocks(scores[:, :, None]).mean(dim=(2, 4)).reshape(1, -1)

    def tile(self, tiles: int) -> Tensor:
        """int64 `[1, t * m]`: which tile a token shows."""
        return torch.arange(tiles)[:, None].expand(-1, self.grid**2).reshape(1, -1)

    def _blocks(self, x: Tensor) -> Tensor:
        t, _, c = x.shape
        # t (rows y columns x) c -> t rows y columns x c
        return x.reshape(t, self.grid, self.side, self.grid, self.side, c)
