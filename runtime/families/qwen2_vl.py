"""The Qwen-VL families: pictures keep their shape and become cells of 2 x 2 patches, one visual token each.

Patches come from the checkpoint's own image processor. What the encoder has to know about a grid of cells
(rows and columns for its rotary angles, attention windows) is made here, as small arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image

from foveate.runtime.arrays import Array, Floats, Ints
from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families import VisualItem, grid_boxes
from foveate.runtime.manifest import Record
from foveate.runtime.pretrained import load_image_processor

VIDEO_TOKEN: Final = "<|video_pad|>"
_VIDEO_FILES: Final = ("video_preprocessor_config.json", "preprocessor_config.json")
_SLIMMEST: Final = 200


class Facts(Record):
    """`window`: cells along one side of an attention window, 0 for none.

    `position_side`: side of the learnt table of positions, 0 for none. `tokens_per_second`: how fast time
    runs in the positions of a video; None where every pair of frames is one step.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window: int = 0
    position_side: int = 0
    tokens_per_second: float | None = None

    @property
    def cell_size(self) -> int:
        """Pixels along one side of a cell."""
        return self.patch_size * self.merge_size


class Grid(NamedTuple):
    """Cells of an item: time steps, rows, columns."""

    steps: int
    rows: int
    columns: int


class Preprocessor:
    """The checkpoint's image processor, regrouped; videos have the limits of its video processor."""

    video_pixels = (128 * 28 * 28, 768 * 28 * 28)
    """Fewest and most pixels of a frame where the checkpoint does not say it."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        self.placeholders = {"image": image_token, "video": VIDEO_TOKEN}
        self._folder = folder
        self._facts = Facts.model_validate(dict(facts))
        self._token = image_token

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        """One picture: one time step."""
        patches, (rows, columns) = self._patches([image])
        grid = Grid(1, rows, columns)
        return VisualItem(
            kind="image",
            feeds={"patches": patches, **self._geometry(rows, columns)},
            text=self._token,
            runs=np.array([rows * columns], np.int64),
            positions=grid_positions(grid, 1.0),
            spans=np.array([max(rows, columns)], np.int64),
            boxes=grid_boxes(rows, columns),
            frame=np.zeros(rows * columns, np.int64),
        )

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """Frames, as many to a time step as patches are deep; the last one fills up the last step."""
        depth = self._facts.temporal_patch_size
        settings = self._video_settings
        height, width = self.frame_size(len(frames), frames[0].height, frames[0].width)
        scaled = [frame.resize((width, height), settings.get("resample", 3)) for frame in frames]
        scaled += scaled[-1:] * (-len(scaled) % depth)
        style = {key: settings[key] for key in ("image_mean", "image_std") if settings.get(key)}
        single, (rows, columns) = self._patches(scaled, do_resize=False, **style)
        grid = Grid(len(scaled) // depth, rows, columns)
        patches = self._in_steps(single, grid)
        step = np.arange(grid.steps * depth, step=depth, dtype=np.int64)
        return VisualItem(
            kind="video",
            feeds={"patches": patches, **self._geometry(rows, columns)},
            boxes=np.tile(grid_boxes(rows, columns), (grid.steps, 1)),
            frame=np.repeat(step, rows * columns),
            **self.video_runs(grid, len(frames), fps),
        )

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of a video's frames as the model sees them."""
        fewest, most = self._pixel_limits
        return fitted_size(height, width, self._facts.cell_size, fewest, most)

    def video_runs(self, grid: Grid, frames: int, fps: float) -> dict[str, Any]:
        """Text, runs, positions and spans of a video: one run."""
        speed = self._facts.tokens_per_second
        interval = 1.0 if speed is None else speed * (self._facts.temporal_patch_size / fps)
        return {
            "text": VIDEO_TOKEN,
            "runs": np.array([grid.steps * grid.rows * grid.columns], np.int64),
            "positions": grid_positions(grid, interval),
            "spans": np.array([max(grid.rows, grid.columns)], np.int64),
        }

    def _patches(self, pictures: Sequence[Image.Image], **options: Any) -> tuple[Floats, tuple[int, int]]:
        """Patches `[pictures, n, u, w]` of pictures of one size, and the rows and columns of their cells."""
        try:
            made = self._processor(list(pictures), return_tensors="np", **options)
        except ValueError as error:
            size = f"{pictures[0].width} x {pictures[0].height} pixels"
            raise InputError(f"the image processor refuses this picture: {error}", found=size) from error
        facts = self._facts
        _, rows, columns = (int(x) for x in made["image_grid_thw"][0])
        width = 3 * facts.temporal_patch_size * facts.patch_size**2
        pixels = np.asarray(made["pixel_values"], np.float32)
        if pixels.shape[1:] != (width,) or rows % facts.merge_size or columns % facts.merge_size:
            raise BundleError(
                "the image processor does not fit the model",
                found=f"patches of {pixels.shape[1:]} numbers, {rows} x {columns} of them",
                wanted=f"{width} numbers, multiples of {facts.merge_size}",
                mend="compare preprocessor_config.json with vision_config of config.json, and export again",
            )
        rows, columns = rows // facts.merge_size, columns // facts.merge_size
        # The processor's order is that of cells already: rows, columns, then the patches of a cell.
        shape = (len(pictures), rows * columns, facts.merge_size**2, width)
        return np.ascontiguousarray(pixels.reshape(shape)), (rows, columns)

    def _in_steps(self, single: Floats, grid: Grid) -> Floats:
        """Patches of single frames, each repeated to a patch's depth, to those of `depth` frames each."""
        facts = self._facts
        depth, area = facts.temporal_patch_size, facts.patch_size**2
        shape = (grid.steps, depth, grid.rows * grid.columns, facts.merge_size**2, 3, depth, area)
        apart = single.reshape(shape)[:, :, :, :, :, 0]  # t z n u c a: of the equal copies one
        together = np.moveaxis(apart, 1, 4)  # t n u c z a
        return np.ascontiguousarray(together.reshape(*together.shape[:3], 3 * depth * area))

    def _geometry(self, rows: int, columns: int) -> dict[str, Array]:
        """What the encoder has to know about a grid of cells, frame by frame the same."""
        feeds: dict[str, Array] = {"coords": patch_coords(rows, columns, self._facts.merge_size)}
        if self._facts.window:
            index, place = attention_windows(rows, columns, self._facts.window)
            feeds |= {"window_index": index, "window_place": place}
        return feeds

    @property
    def _pixel_limits(self) -> tuple[int, int]:
        settings = self._video_settings
        size = settings.get("size") or {}
        fewest, most = self.video_pixels
        fewest = settings.get("min_pixels") or size.get("shortest_edge") or fewest
        return int(fewest), int(settings.get("max_pixels") or size.get("longest_edge") or most)

    @cached_property
    def _video_settings(self) -> dict[str, Any]:
        """The video processor's settings, from where transformers takes them."""
        files = {name: _read_object(self._folder / name) for name in ("processor_config.json", *_VIDEO_FILES)}
        nested = files["processor_config.json"].get("video_processor")
        return nested or next((files[name] for name in _VIDEO_FILES if files[name]), {})

    @cached_property
    def _processor(self) -> Any:
        return load_image_processor(self._folder)


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def fitted_size(height: int, width: int, unit: int, fewest: int, most: int) -> tuple[int, int]:
    """The nearest multiples of `unit` with between `fewest` and `most` pixels, in the picture's proportions.

    Raises:
        InputError: one side is more than 200 times the other.
    """
    require_proportions(height, width)
    high, wide = round(height / unit) * unit, round(width / unit) * unit
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high = max(unit, math.floor(height / shrink / unit) * unit)
        wide = max(unit, math.floor(width / shrink / unit) * unit)
    elif high * wide < fewest:
        grow = math.sqrt(fewest / (height * width))
        high, wide = math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
    return high, wide


def require_proportions(height: int, width: int) -> None:
    """Raises `InputError` where one side is more than 200 times the other."""
    if max(height, width) > _SLIMMEST * min(height, width):
        wanted = f"one side at most {_SLIMMEST} times the other"
        raise InputError("the picture is too slim", found=f"{width} x {height} pixels", wanted=wanted)


def patch_coords(rows: int, columns: int, merge: int) -> Ints:
    """Row and column of each patch, cell by cell: `[rows * columns, merge^2, 2]`."""
    y, x = np.mgrid[0 : rows * merge, 0 : columns * merge].astype(np.int64)
    both = np.stack([y, x], axis=-1).reshape(rows, merge, columns, merge, 2)
    return np.ascontiguousarray(both.swapaxes(1, 2).reshape(rows * columns, merge * merge, 2))


def attention_windows(rows: int, columns: int, side: int) -> tuple[Ints, Ints]:
    """Cells of each window `[w, side^2]`, -1 over the edge, and the slot `[n]` where each cell went."""
    high, wide = -(-rows // side), -(-columns // side)
    cells = np.full((high * side, wide * side), -1, np.int64)
    cells[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    windows = cells.reshape(high, side, wide, side).swapaxes(1, 2).reshape(high * wide, side * side)
    slots = np.flatnonzero(windows.reshape(-1) >= 0)
    place = np.empty(rows * columns, np.int64)
    place[windows.reshape(-1)[slots]] = slots
    return np.ascontiguousarray(windows), place


def grid_positions(grid: Grid, interval: float) -> Ints:
    """Time, row and column of each visual token `[n, 3]`; a step of time takes `interval` positions."""
    t, y, x = np.mgrid[0 : grid.steps, 0 : grid.rows, 0 : grid.columns].astype(np.int64)
    # In float32, as the model's own code does it: the product is cut off to a whole number.
    time = (t.astype(np.float32) * np.float32(interval)).astype(np.int64)
    return np.stack([time, y, x], axis=-1).reshape(-1, 3)  # t y x 3 -> (t y x) 3
