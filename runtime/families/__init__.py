"""Images and videos made ready for the vision stage: one file per family, with `Facts` and `Preprocessor`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from foveate.runtime.arrays import Array, Floats, Ints


@dataclass(frozen=True)
class VisualItem:
    """One image or video, ready for the vision stage and for the prompt.

    Attributes:
        kind: "image" or "video".
        feeds: the vision stage's inputs for this item alone, by name. Families that run several items at once
            have a leading axis of 1 here.
        text: what replaces the template's placeholder in the rendered prompt. Each run of visual tokens is
            written as one visual token.
        runs: int64 `[r]`, visual tokens of each run, in order; their sum is n.
        positions: int64 `[n, axes]`, positions of the visual tokens relative to the start of their own run,
            which is the position that a text token would have there.
        spans: int64 `[r]`, how many positions each run takes: what follows goes on behind them.
        boxes: float32 `[n, 4]`, what each visual token shows: left, top, right, bottom as shares of the
            picture; NaN for tokens that show nothing (line ends).
        frame: int64 `[n]`, which frame of a video it shows; 0 for images.
    """

    kind: str
    feeds: Mapping[str, Array]
    text: str
    runs: Ints
    positions: Ints
    spans: Ints
    boxes: Floats
    frame: Ints

    @property
    def visual_tokens(self) -> int:
        """n, before any pruning."""
        return int(self.runs.sum())


class Preprocessor(Protocol):
    """What a family's class `Preprocessor` offers. Nothing here knows about pruning.

    It may also have `counts_images = True` (an image is made otherwise when it is not the only one of its
    prompt) and `video_template` (the chat template of prompts with videos, where the checkpoint's has none).
    """

    placeholders: Mapping[str, str]
    """What the chat template writes for each kind of item: `{"image": "<image>"}`; others are refused."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        """`folder` has the processor's files, `facts` is `model.vision` (manifest); loads on first use."""

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        """One of `of` RGB images of a prompt. Raises `InputError` when it does not fit the model."""

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """RGB frames of one size, `fps` of them a second. Raises `InputError`: the model takes no videos."""


def find_preprocessor(family: str) -> type[Preprocessor]:
    """The class of a family that the exporter knows."""
    module = importlib.import_module(f"foveate.runtime.families.{family}")
    return cast("type[Preprocessor]", module.Preprocessor)


def grid_boxes(rows: int, columns: int) -> Floats:
    """Boxes `[rows * columns, 4]` of a regular grid over the whole picture, raster order."""
    y, x = np.mgrid[0:rows, 0:columns]
    corners = np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=-1)
    return np.asarray(corners.reshape(rows * columns, 4), np.float32)  # r c 4 -> (r c) 4


def one_run(count: int) -> dict[str, Ints]:
    """`runs`, `positions` and `spans` of visual tokens that are one run with positions 0, 1, 2, ..."""
    return {
        "runs": np.array([count], np.int64),
        "positions": np.arange(count, dtype=np.int64)[:, None],
        "spans": np.array([count], np.int64),
    }
