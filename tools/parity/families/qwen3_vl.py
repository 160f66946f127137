"""Qwen3-VL: as Qwen2-VL, with DeepStack, and videos whose frames are runs of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from foveate.tools.parity.families import qwen2_vl


class PlainVideos(qwen2_vl.PlainVideos):
    """The limits are for all frames together."""

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width to which frames are scaled."""
        high, wide = smart_resize(
            num_frames=frames,
            height=height,
            width=width,
            temporal_factor=self.temporal_patch_size,
            factor=self.patch_size * self.merge_size,
            min_pixels=self.fewest,
            max_pixels=self.most,
        )
        return high, wide


class Oracle(qwen2_vl.Oracle):
    """transformers' Qwen3-VL."""

    def video_processor(self, checkpoint: Path) -> Any:
        """Videos without torchvision."""
        return PlainVideos(checkpoint)

    def deepstack(self, out: Any) -> Tensor | None:
        """What is added after the decoder's first layers [levels, n, d]."""
        return torch.stack([level[0] for level in out.deepstack_features])
