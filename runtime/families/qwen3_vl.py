"""Qwen3-VL: as Qwen2-VL, with a learnt table of positions and times written before a video's frames."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from foveate.runtime.arrays import Array, Floats, Ints
from foveate.runtime.errors import InputError
from foveate.runtime.families import qwen2_vl
from foveate.runtime.families.qwen2_vl import VIDEO_TOKEN, Facts, Grid, grid_positions, require_proportions

__all__ = ["Facts", "Preprocessor"]


class Preprocessor(qwen2_vl.Preprocessor):
    """The checkpoint's image processor, regrouped; a video's limits hold for all its frames together."""

    video_pixels = (128 * 32 * 32, 768 * 32 * 32)

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of a video's frames as the model sees them. Raises `InputError`."""
        unit, depth = self._facts.cell_size, self._facts.temporal_patch_size
        if frames < depth:
            found, wanted = f"{frames} frame(s)", f"{depth} or more"
            raise InputError("the video is too short", found=found, wanted=wanted, mend="give it as an image")
        if min(height, width) < unit:
            grow = max(unit / height, unit / width)
            height, width = int(height * grow), int(width * grow)
        require_proportions(height, width)
        fewest, most = self._pixel_limits
        high, wide = round(height / unit) * unit, round(width / unit) * unit
        pixels = round(frames / depth) * depth * high * wide
        if pixels > most:
            shrink = math.sqrt(frames * height * width / most)
            high = max(unit, math.floor(height / shrink / unit) * unit)
            wide = max(unit, math.floor(width / shrink / unit) * unit)
        elif pixels < fewest:
            grow = math.sqrt(fewest / (frames * height * width))
            high, wide = math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
        return high, wide

    def video_runs(self, grid: Grid, frames: int, fps: float) -> dict[str, Any]:
        """One run per time step, each behind the time in the middle of its frames."""
        depth = self._facts.temporal_patch_size
        text = ""
        for step in range(grid.steps):
            first, last = step * depth, min((step + 1) * depth, frames) - 1
            text += (
                f"<{(first / fps + last / fps) / 2:.1f} seconds><|vision_start|>{VIDEO_TOKEN}<|vision_end|>"
            )
        cells = grid.rows * grid.columns
        one = grid_positions(Grid(1, grid.rows, grid.columns), 1.0)
        return {
            "text": text,
            "runs": np.full(grid.steps, cells, np.int64),
            "positions": np.tile(one, (grid.steps, 1)),
            "spans": np.full(grid.steps, max(grid.rows, grid.columns), np.int64),
        }

    def _geometry(self, rows: int, columns: int) -> dict[str, Array]:
        coords = super()._geometry(rows, columns)["coords"]
        merge = self._facts.merge_size
        index, weight = table_neighbours(coords, (rows * merge, columns * merge), self._facts.position_side)
        return {"coords": coords, "table_index": index, "table_weight": weight}


def table_neighbours(coords: Array, patches: tuple[int, int], side: int) -> tuple[Ints, Floats]:
    """Where patches `[n, u, 2]` lie in a table of `side x side`: neighbours and their shares `[n, u, 4]`.

    The corners of the grid of `patches` (rows, columns) lie on those of the table.
    """
    taps, shares = [], []
    for axis, count in enumerate(patches):
        place = coords[..., axis].astype(np.float32) * np.float32(side - 1) / np.float32(max(count - 1, 1))
        low = np.floor(place)
        share = place - low
        low = low.astype(np.int64)
        taps.append(np.stack([low, np.minimum(low + 1, side - 1)], axis=-1))  # n u 2
        shares.append(np.stack([1 - share, share], axis=-1))
    index = taps[0][..., :, None] * side + taps[1][..., None, :]  # n u 2 2
    weight = shares[0][..., :, None] * shares[1][..., None, :]
    shape = (*coords.shape[:2], 4)
    return index.reshape(shape), np.asarray(weight.reshape(shape), np.float32)  # n u 2 2 -> n u 4
