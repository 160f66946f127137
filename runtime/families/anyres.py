"""Pictures of any shape as square tiles (LLaVA-NeXT, LLaVA-OneVision): which tokens show which patches.

    tile 0       the whole picture, squeezed into a square
    tiles 1 ...  the picture in its own shape, in the middle of a canvas of several squares

Tokens are the patches of tile 0, then those of the canvas row by row, with a line end behind each row. Rows
and columns of the canvas that hold nothing but padding are cut away ("unpadded"). Patches are numbered on
through all tiles: patch i of tile t is `t * side^2 + i`.

The numbers are transformers', down to the rounding: a prompt must have as many tokens as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from foveate.runtime.arrays import Array, Floats, Ints
from foveate.runtime.errors import BundleError

Size = tuple[int, int]
"""Height and width."""

# Above this share of too many patches, LLaVA-OneVision makes them fewer.
_SURPLUS: Final = 1.1


@dataclass(frozen=True)
class Canvas:
    """A picture on its squares.

    Attributes:
        picture: size of the picture, in its own pixels.
        canvas: size of all squares together, in pixels.
        tile: a square's width in pixels.
        patch: a patch's width in pixels. What is left over at a square's right and bottom is not seen.
    """

    picture: Size
    canvas: Size
    tile: int
    patch: int

    @property
    def side(self) -> int:
        """Patches along a square."""
        return self.tile // self.patch

    @property
    def tiles(self) -> int:
        """Tile 0 and the squares."""
        return 1 + (self.canvas[0] // self.tile) * (self.canvas[1] // self.tile)

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Top, left, rows and columns of the patches that are more than padding."""
        rows, columns = (self.side * (length // self.tile) for length in self.canvas)
        height, width = self.picture
        if width / height > columns / rows:
            padding = (rows - int(round(height * (columns / width), 7))) // 2
            return padding, 0, rows - 2 * padding, columns
        padding = (columns - int(round(width * (rows / height), 7))) // 2
        return 0, padding, rows, columns - 2 * padding

    def patches(self) -> Ints:
        """Numbers of the patches `[rows, columns]` in the window."""
        top, left, rows, columns = self.window
        row, column = np.arange(top, top + rows)[:, None], np.arange(left, left + columns)[None]
        side, across = self.side, self.canvas[1] // self.tile
        tile = 1 + (row // side) * across + column // side
        return np.asarray(tile * side**2 + (row % side) * side + column % side, np.int64)

    def boxes(self, rows: int, columns: int) -> Floats:
        """What the cells show when the window is cut into `rows` by `columns`: `[rows * columns, 4]`."""
        top, left, all_rows, all_columns = self.window
        height, width = self._content
        y = self._shares(top + np.linspace(0, all_rows, rows + 1), self.canvas[0], height)
        x = self._shares(left + np.linspace(0, all_columns, columns + 1), self.canvas[1], width)
        box = np.empty((rows, columns, 4), np.float32)
        box[..., 0], box[..., 2] = x[:-1], x[1:]
        box[..., 1], box[..., 3] = y[:-1, None], y[1:, None]
        return shown(box.reshape(-1, 4))  # r c 4 -> (r c) 4

    @property
    def _content(self) -> Size:
        """Size of the picture on the canvas."""
        (height, width), (high, wide) = self.picture, self.canvas
        if wide / width < high / height:
            return min(math.ceil(height * (wide / width)), high), wide
        return high, min(math.ceil(width * (high / height)), wide)

    def _shares(self, edges: Array, canvas: int, content: int) -> Floats:
        """Edges, counted in patches, as shares of the picture's length: `content` pixels of `canvas`."""
        pixels = edges // self.side * self.tile + edges % self.side * self.patch
        return np.asarray((pixels - (canvas - content) // 2) / content, np.float32)


def fit(picture: Size, canvases: Sequence[Size], tile: int, patch: int) -> Canvas:
    """The canvas that shows most of a picture; of those that do, the first with the least padding."""
    height, width = picture

    def rank(canvas: Size) -> tuple[int, int]:
        high, wide = canvas
        scale = min(wide / width, high / height)
        seen = min(int(width * scale) * int(height * scale), width * height)
        return seen, seen - high * wide

    return Canvas(picture, max(canvases, key=rank), tile, patch)


def fewer(rows: int, columns: int, side: int, limit: int) -> Size:
    """How many rows and columns are left where more patches than `limit` tiles have are made that many."""
    ratio = math.sqrt(rows * columns / (limit * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > _SURPLUS else (rows, columns)


def bilinear(given: Size, wanted: Size) -> tuple[Ints, Floats]:
    """Resampling of a grid: up to 4 cells of `given` for each cell of `wanted`, `[n, 4]`, and their weights.

    The heaviest comes first. As torch's `interpolate` does it: centres on centres, no smoothing, in float32.
    """
    row, row_weight = _between(given[0], wanted[0])
    column, column_weight = _between(given[1], wanted[1])
    number = row[:, None, :, None] * given[1] + column[None, :, None, :]  # r c 2 2
    weight = row_weight[:, None, :, None] * column_weight[None, :, None, :]
    number, weight = number.reshape(-1, 4), weight.reshape(-1, 4)  # r c 2 2 -> (r c) (2 2)
    order = np.argsort(-weight, axis=1, kind="stable")
    return np.take_along_axis(number, order, 1), np.take_along_axis(weight, order, 1)


def _between(given: int, wanted: int) -> tuple[Ints, Floats]:
    """Along one side: the two neighbours `[wanted, 2]` of each new cell, and their weights."""
    scale = np.float32(given) / np.float32(wanted)
    place = np.maximum((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = place.astype(np.int64)
    high = np.minimum(low + 1, given - 1)
    above = place - low.astype(np.float32)
    return np.stack([low, high], 1), np.stack([1 - above, above], 1).astype(np.float32)


def lines(first: int, rows: int, columns: int) -> tuple[Ints, Ints]:
    """Tokens `[l, columns]` of each line and the tokens `[l]` that end them; the first `first` are tile 0's.

    Lines without tokens, of a picture thinner than a patch, count as the end of tile 0. There is always one.
    """
    token = first + np.arange(rows * (columns + 1), dtype=np.int64).reshape(rows, columns + 1)
    line, end = token[:, :-1], token[:, -1]
    if not line.size:
        line = np.tile(np.arange(first, dtype=np.int64), (max(rows, 1), 1))
    return np.ascontiguousarray(line), end


def shown(boxes: Floats) -> Floats:
    """Boxes `[n, 4]` cut to the picture; NaN where nothing of it is left."""
    cut = np.clip(boxes, 0, 1).astype(np.float32)
    cut[(cut[:, 2] <= cut[:, 0]) | (cut[:, 3] <= cut[:, 1])] = np.nan
    return cut


def with_line_ends(boxes: Floats, rows: int) -> Floats:
    """Boxes `[rows * columns, 4]` with a line end, which shows nothing, behind each row."""
    lines = boxes.reshape(rows, -1, 4) if boxes.size else np.empty((rows, 0, 4), np.float32)
    ends = np.full((rows, 1, 4), np.nan, np.float32)
    return np.concatenate([lines, ends], axis=1).reshape(-1, 4)  # r c+1 4 -> (r c+1) 4


def cut_into_tiles(processor: Any, images: Any, tiles: int, tile: int) -> Floats:
    """What the image processor makes of the (first) image: pixels `[tiles, 3, tile, tile]`.

    Raises:
        BundleError: other tiles come out than the model's configuration says.
    """
    made = processor(images, return_tensors="np")["pixel_values"][0]
    pixels = np.ascontiguousarray(made[:tiles], np.float32)
    if len(made) < tiles or pixels.shape != (tiles, 3, tile, tile):
        raise BundleError(
            "the image processor does not fit the model",
            found=f"tiles {list(np.shape(made))}",
            wanted=str([tiles, 3, tile, tile]),
            mend="compare preprocessor_config.json with image_grid_pinpoints and vision_config.image_size in "
            "config.json, and export again",
        )
    return pixels


def picture_size(image: Image.Image) -> Size:
    """Height and width of an image."""
    return image.height, image.width
