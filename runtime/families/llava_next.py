"""LLaVA-NeXT: an image is the whole picture, then its crops row by row, a line end behind each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.runtime.errors import InputError
from foveate.runtime.families import VisualItem, grid_boxes, one_run
from foveate.runtime.families.anyres import cut_into_tiles, fit, lines, picture_size, with_line_ends
from foveate.runtime.manifest import Record
from foveate.runtime.pretrained import load_image_processor


class Facts(Record):
    """`canvases`: heights and widths that crops may make up together."""

    image_size: int
    patch_size: int
    canvases: tuple[tuple[int, int], ...]


class Preprocessor:
    """The checkpoint's own image processor, and where its tiles' patches stand in the prompt."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        self.placeholders = {"image": image_token}
        self._folder = folder
        self._facts = Facts.model_validate(dict(facts))
        self._token = image_token

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        """Tiles `[t, 3, size, size]`, and for every token the patch or line end that it is.

        `place [n]` is the number of a patch, or `t * p` and the number of a line. `line [l, columns]` holds
        the tokens of each line.
        """
        facts = self._facts
        canvas = fit(picture_size(image), facts.canvases, facts.image_size, facts.patch_size)
        _, _, rows, columns = canvas.window
        p, patches = canvas.side**2, canvas.patches()
        ends = canvas.tiles * p + np.arange(rows)[:, None]
        place = np.concatenate([np.arange(p), np.hstack([patches, ends]).reshape(-1)])  # r c+1 -> (r c+1)
        boxes = [
            grid_boxes(canvas.side, canvas.side),
            with_line_ends(canvas.boxes(rows, columns), rows),
        ]
        return VisualItem(
            kind="image",
            feeds={
                "pixel_values": cut_into_tiles(self._processor, [image], canvas.tiles, facts.image_size),
                "place": place.astype(np.int64),
                "line": lines(p, rows, columns)[0],
            },
            text=self._token,
            boxes=np.concatenate(boxes),
            frame=np.zeros(len(place), np.int64),
            **one_run(len(place)),
        )

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """Always refused."""
        raise InputError("this model takes no videos", mend="give single frames as images")

    @cached_property
    def _processor(self) -> Any:
        return load_image_processor(self._folder)
