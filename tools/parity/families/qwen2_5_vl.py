"""Qwen2.5-VL: as Qwen2-VL, but the encoder sees its patches in the order of attention windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from foveate.tools.parity.families import qwen2_vl


class Oracle(qwen2_vl.Oracle):
    """transformers' Qwen2.5-VL."""

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Encoder layers without windows."""
        return tuple(sorted(self.vision.fullatt_block_indexes))

    def natural(self, rows: Tensor, grid: Sequence[int]) -> Tensor:
        """Rows [t * p, w] in window order, in the order of the picture: [t, p, w]."""
        index, _ = get_vision_window_index(
            torch.tensor([list(grid)]),
            spatial_merge_size=int(self.vision.spatial_merge_size),
            window_size=int(self.vision.window_size),
            patch_size=int(self.vision.patch_size),
        )
        placed = torch.empty_like(rows)
        for now, cell in enumerate(index.tolist()):
            for i in range(self.unit):
                placed[cell * self.unit + i] = rows[now * self.unit + i]
        return super().natural(placed, grid)
