"""InternVL: an image is cut into square tiles and followed by its thumbnail; all of them make one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.runtime.errors import BundleError
from foveate.runtime.families import VisualItem, one_run
from foveate.runtime.families.tiles import named_token, square_tiles, tile_boxes, tile_runs
from foveate.runtime.manifest import Record
from foveate.runtime.pretrained import load_image_processor


class Facts(Record):
    """`tile_size` in pixels; `token_grid`: visual tokens along one side of a tile."""

    tile_size: int
    token_grid: int


class Preprocessor:
    """The checkpoint's own image processor, cutting pictures as InternVL's processor has it do."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        self._folder = folder
        self._facts = Facts.model_validate(dict(facts))
        self._token = image_token

    @cached_property
    def placeholders(self) -> Mapping[str, str]:
        """What the chat template writes."""
        return {"image": self._token, "video": named_token(self._folder, "video_token", "<video>")}

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        """Tiles `[t, 3, s, s]` in raster order; where there are several, the thumbnail is the last."""
        out = self._processor([image], crop_to_patches=True, return_tensors="np")
        pixels = square_tiles(out["pixel_values"], self._facts.tile_size)
        rows, columns = self._tiling(image.size)
        tiles = rows * columns + (rows * columns > 1)
        if tiles != len(pixels):
            raise BundleError(
                "the image processor cuts pictures in another way than this version of Foveate expects",
                found=f"{len(pixels)} tiles of a picture of {image.size[0]} x {image.size[1]}",
                wanted=f"{tiles}",
            )
        boxes = tile_boxes(rows, columns, self._facts.token_grid)
        return VisualItem(
            kind="image",
            feeds={"pixel_values": pixels},
            text=self._run,
            boxes=boxes,
            frame=np.zeros(len(boxes), np.int64),
            **one_run(len(boxes)),
        )

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """Each frame is one tile and one run; the prompt counts them."""
        out = self._processor(list(frames), crop_to_patches=False, return_tensors="np")
        pixels = square_tiles(out["pixel_values"], self._facts.tile_size)
        t, tokens = len(frames), self._facts.token_grid**2
        return VisualItem(
            kind="video",
            feeds={"pixel_values": pixels},
            text="\n".join(f"Frame{i}: {self._run}" for i in range(1, t + 1)),
            boxes=np.tile(tile_boxes(1, 1, self._facts.token_grid), (t, 1)),
            frame=np.repeat(np.arange(t, dtype=np.int64), tokens),
            **tile_runs(t, tokens),
        )

    def _tiling(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tiles of a picture of `size` (width, height)."""
        processor = self._processor
        if processor.max_patches <= 1:
            return 1, 1
        return best_tiling(size, self._facts.tile_size, processor.min_patches, processor.max_patches)

    @cached_property
    def _run(self) -> str:
        start = named_token(self._folder, "start_image_token", "<img>")
        end = named_token(self._folder, "end_image_token", "</img>")
        return f"{start}{self._token}{end}"

    @cached_property
    def _processor(self) -> Any:
        return load_image_processor(self._folder)


def best_tiling(size: tuple[int, int], tile: int, fewest: int, most: int) -> tuple[int, int]:
    """Rows and columns whose shape is nearest to that of a picture of `size` (width, height).

    Of equally near ones, a later (larger) one wins as long as half its area is below the picture's.
    """
    width, height = size
    shapes = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if fewest <= columns * rows <= most
    ]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        distance = abs(width / height - columns / rows)
        grows = distance == nearest and width * height > 0.5 * tile * tile * columns * rows
        if distance < nearest or grows:
            best, nearest = (rows, columns), distance
    return best
