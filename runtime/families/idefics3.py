"""Idefics3: a picture is cut into square tiles, each a run of its own, and shown whole behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.runtime.errors import InputError
from foveate.runtime.families import VisualItem
from foveate.runtime.families.tiles import square_tiles, tile_boxes, tile_runs
from foveate.runtime.manifest import Record
from foveate.runtime.pretrained import load_image_processor


class Facts(Record):
    """`tile_size` in pixels; `token_grid`: visual tokens along one side of a tile."""

    tile_size: int
    token_grid: int


class Preprocessor:
    """The checkpoint's own image processor, and the markers that say which tile is where."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        self._folder = folder
        self._facts = Facts.model_validate(dict(facts))
        self._token = image_token

    @cached_property
    def placeholders(self) -> Mapping[str, str]:
        """What the chat template writes."""
        return {"image": self._token}

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        """Tiles `[t, 3, s, s]` in raster order, the whole picture last; small pictures are one tile."""
        out = self._processor([image], return_row_col_info=True, return_tensors="np")
        rows, columns = int(out["rows"][0][0]), int(out["cols"][0][0])
        pixels = square_tiles(out["pixel_values"][0], self._facts.tile_size)
        boxes = tile_boxes(max(rows, 1), max(columns, 1), self._facts.token_grid)
        return VisualItem(
            kind="image",
            feeds={"pixel_values": pixels},
            text=self._split_text(rows, columns) + self._whole,
            boxes=boxes,
            frame=np.zeros(len(boxes), np.int64),
            **tile_runs(len(pixels), self._facts.token_grid**2),
        )

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """Always refused."""
        raise InputError("this model takes no videos", mend="give single frames as images")

    def _split_text(self, rows: int, columns: int) -> str:
        """The tiles of a picture that was cut, row by row; nothing for one that was not."""
        mark, _ = self._marks
        lines = [
            "".join(f"{mark}<row_{row}_col_{column}>{self._token}" for column in range(1, columns + 1))
            for row in range(1, rows + 1)
        ]
        return "".join(f"{line}\n" for line in lines) + ("\n" if lines else "")

    @property
    def _whole(self) -> str:
        """The whole picture, and the mark behind it."""
        mark, whole = self._marks
        return f"{mark}{whole}{self._token}{mark}"

    @cached_property
    def _marks(self) -> tuple[str, str]:
        """What stands before and behind tiles, and what says that a tile is the whole picture."""
        return "<fake_token_around_image>", "<global-img>"

    @cached_property
    def _processor(self) -> Any:
        return load_image_processor(self._folder)
