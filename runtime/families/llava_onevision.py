"""LLaVA-OneVision: one image as whole picture and crops, several images as squares, videos as frames.

Every token is a weighted sum of up to four patches, or a line end. The vision stage is told which:

    source [n, 4]           numbers of patches, through all tiles, the heaviest first; a line end has
                            `t * p` and the number of its line in the first place
    weight [n, 4]           their weights
    line   [l, columns]     which tokens each line consists of
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from foveate.runtime.arrays import Array, Floats, Ints
from foveate.runtime.families import VisualItem, grid_boxes, one_run
from foveate.runtime.families.anyres import (
    Canvas,
    Size,
    bilinear,
    cut_into_tiles,
    fewer,
    fit,
    lines,
    picture_size,
    shown,
    with_line_ends,
)
from foveate.runtime.families.video_settings import read_video_settings
from foveate.runtime.manifest import Record
from foveate.runtime.pretrained import load_image_processor

VIDEO_TOKEN: Final = "<video>"
_NOTHING: Final = np.full((1, 4), np.nan, np.float32)


class Facts(Record):
    """`canvases`: heights and widths that crops may make up together. `limit`: most patches, in tiles."""

    image_size: int
    patch_size: int
    canvases: tuple[tuple[int, int], ...]
    limit: int

    @property
    def side(self) -> int:
        """Patches along a tile."""
        return self.image_size // self.patch_size


class Preprocessor:
    """The checkpoint's own image processor, and of which of its tiles' patches each token is made."""

    counts_images = True
    """An image that is alone in its prompt is another item than one of several."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        self.placeholders = {"image": image_token, "video": VIDEO_TOKEN}
        self._folder = folder
        self._facts = Facts.model_validate(dict(facts))
        self._token = image_token

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        """One of `of` images of a prompt: crops are only made of a single one."""
        return self._single(image) if of == 1 else self._one_of_several(image)

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """Frames as squares, their patches resampled to half the side; one line end behind all."""
        side, size = self._facts.side, self._facts.image_size
        half = -(-side // 2)
        settings = read_video_settings(self._folder)
        style = {key: settings[key] for key in ("image_mean", "image_std") if settings.get(key)}
        scaled = [frame.resize((size, size), settings.get("resample", 3)) for frame in frames]
        # Several images of one prompt are not cut into crops; a frame more makes them several.
        pixels = self._processor([[*scaled, scaled[-1]]], return_tensors="np", **style)["pixel_values"]
        cell, share = bilinear((side, side), (half, half))
        first = np.arange(len(frames))[:, None, None] * side**2
        source = (first + cell[None]).reshape(-1, 4)  # f n 4 -> (f n) 4
        n = len(source) + 1
        return VisualItem(
            kind="video",
            feeds={
                "pixel_values": np.ascontiguousarray(pixels[: len(frames), 0], np.float32),
                **_with_one_end(source, np.tile(share, (len(frames), 1)), len(frames) * side**2),
            },
            text=VIDEO_TOKEN,
            boxes=np.concatenate([np.tile(grid_boxes(half, half), (len(frames), 1)), _NOTHING]),
            frame=np.append(np.repeat(np.arange(len(frames)), half**2), len(frames) - 1).astype(np.int64),
            **one_run(n),
        )

    def _single(self, image: Image.Image) -> VisualItem:
        facts = self._facts
        canvas = fit(picture_size(image), facts.canvases, facts.image_size, facts.patch_size)
        arrays, (rows, columns) = _with_crops(canvas, facts.limit)
        boxes = [self._square_boxes(1.0, 1.0), with_line_ends(canvas.boxes(rows, columns), rows)]
        n = sum(map(len, boxes))
        return VisualItem(
            kind="image",
            feeds={
                "pixel_values": cut_into_tiles(self._processor, [[image]], canvas.tiles, facts.image_size),
                **arrays,
            },
            text=self._token,
            boxes=np.concatenate(boxes),
            frame=np.zeros(n, np.int64),
            **one_run(n),
        )

    def _one_of_several(self, image: Image.Image) -> VisualItem:
        """The picture in the middle of a square."""
        p, longer = self._facts.side**2, max(image.size)
        source = np.zeros((p, 4), np.int64)
        source[:, 0] = np.arange(p)
        weight = np.tile(np.array([1, 0, 0, 0], np.float32), (p, 1))
        boxes = self._square_boxes(longer / image.width, longer / image.height)
        return VisualItem(
            kind="image",
            feeds={
                # The processor does it with images that are not alone.
                "pixel_values": cut_into_tiles(self._processor, [[image, image]], 1, self._facts.image_size),
                **_with_one_end(source, weight, p),
            },
            text=self._token,
            boxes=np.concatenate([boxes, _NOTHING]),
            frame=np.zeros(p + 1, np.int64),
            **one_run(p + 1),
        )

    def _square_boxes(self, width: float, height: float) -> Floats:
        """What a tile's patches show when the tile is so many pictures wide and high, around the middle."""
        facts = self._facts
        seen = facts.side * facts.patch_size / facts.image_size
        scale = np.array([width, height, width, height], np.float32)
        boxes = grid_boxes(facts.side, facts.side) * np.float32(seen) * scale + (1 - scale) / 2
        return shown(boxes.astype(np.float32))

    @cached_property
    def _processor(self) -> Any:
        return load_image_processor(self._folder)


def _with_crops(canvas: Canvas, limit: int) -> tuple[dict[str, Array], Size]:
    """`source`, `weight` and `line` of the whole picture and its crops; rows and columns of the crops."""
    p, patches = canvas.side**2, canvas.patches()
    rows, columns = patches.shape
    wanted = fewer(rows, columns, canvas.side, limit)
    if wanted == (rows, columns):
        cell = np.zeros((rows * columns, 4), np.int64)
        cell[:, 0] = np.arange(rows * columns)
        share = np.tile(np.array([1, 0, 0, 0], np.float32), (rows * columns, 1))
    else:
        cell, share = bilinear((rows, columns), wanted)
        rows, columns = wanted
    line, end = lines(p, rows, columns)
    n = p + rows * (columns + 1)
    source, weight = np.zeros((n, 4), np.int64), np.zeros((n, 4), np.float32)
    source[:p, 0], weight[:, 0] = np.arange(p), 1
    source[end, 0] = canvas.tiles * p + np.arange(rows)
    inner = np.setdiff1d(np.arange(p, n), end)
    source[inner], weight[inner] = patches.reshape(-1)[cell], share
    arrays = {"source": source, "weight": weight, "line": line}
    return arrays, (rows, columns)


def _with_one_end(source: Ints, weight: Floats, patches: int) -> dict[str, Array]:
    """The three arrays of an item that is a single line: `patches` is the number of its line end."""
    end = np.array([[patches, 0, 0, 0]], np.int64)
    return {
        "source": np.concatenate([source, end]).astype(np.int64),
        "weight": np.concatenate([weight, np.array([[1, 0, 0, 0]], np.float32)]),
        "line": np.arange(len(source), dtype=np.int64)[None],
    }
