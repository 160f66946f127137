"""LLaVA-1.5: every image becomes one square of CLIP's size, and one run of its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from foveate.runtime.arrays import Floats
from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families import VisualItem, grid_boxes, one_run
from foveate.runtime.manifest import Record
from foveate.runtime.pretrained import load_image_processor

_NOTHING: Final = np.full((1, 4), np.nan, np.float32)


class Facts(Record):
    """`keep_cls`: the CLS token is a visual token too, the first one."""

    image_size: int
    patch_size: int
    keep_cls: bool = False


class Preprocessor:
    """The checkpoint's own image processor: CLIP's crop of the middle, or LLaVA's padding to a square."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        self.placeholders = {"image": image_token}
        self._folder = folder
        self._facts = Facts.model_validate(dict(facts))
        self._token = image_token

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        """One square of pixels `[1, 3, size, size]`."""
        pixels = np.ascontiguousarray(
            self._processor([image], return_tensors="np")["pixel_values"], np.float32
        )
        size = self._facts.image_size
        if pixels.shape[2:] != (size, size):
            raise BundleError(
                "the image processor does not fit the model",
                found=f"{list(pixels.shape[2:])} pixels",
                wanted=f"[{size}, {size}]",
                mend="compare preprocessor_config.json with vision_config.image_size, and export again",
            )
        boxes = self._boxes(image.size)
        return VisualItem(
            kind="image",
            feeds={"pixel_values": pixels},
            text=self._token,
            boxes=boxes,
            frame=np.zeros(len(boxes), np.int64),
            **one_run(len(boxes)),
        )

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """Always refused."""
        raise InputError("this model takes no videos", mend="give single frames as images")

    def _boxes(self, size: tuple[int, int]) -> Floats:
        """What each visual token shows of a picture of `size` (width, height): `[n, 4]`."""
        side = self._facts.image_size // self._facts.patch_size
        left, top, right, bottom = seen_part(self._processor, size)
        boxes = grid_boxes(side, side) * _xyxy(right - left, bottom - top) + _xyxy(left, top)
        boxes = np.clip(boxes, 0, 1).astype(np.float32)
        # What lies in the padding shows nothing.
        boxes[(boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])] = np.nan
        return np.concatenate([_NOTHING, boxes]) if self._facts.keep_cls else boxes

    @cached_property
    def _processor(self) -> Any:
        return load_image_processor(self._folder)


def _xyxy(x: float, y: float) -> Floats:
    """`[4]` of x, y, x, y: what scales or moves a box."""
    return np.array([x, y, x, y], np.float32)


def seen_part(processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box of a picture (width, height) that its processor shows the model; beyond 0..1 is padding.

    The steps are those of the processor: pad to a square, resize, crop the middle.
    """
    width, height = size
    seen_width, seen_height = float(width), float(height)
    if getattr(processor, "do_pad", False):
        seen_width = seen_height = float(max(size))
    target, crop = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    if getattr(processor, "do_center_crop", False) and crop:
        scale_x = scale_y = 1.0
        if getattr(processor, "do_resize", False) and target:
            scale_x, scale_y = _scales(target, seen_width, seen_height)
        seen_width, seen_height = crop["width"] / scale_x, crop["height"] / scale_y
    # Everything is done around the middle.
    x, y = seen_width / width / 2, seen_height / height / 2
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def _scales(target: Any, width: float, height: float) -> tuple[float, float]:
    """How much resizing enlarges each side."""
    shortest = target.get("shortest_edge")
    if shortest:
        return shortest / min(width, height), shortest / min(width, height)
    return target["width"] / width, target["height"] / height
