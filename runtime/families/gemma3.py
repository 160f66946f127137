"""Gemma 3: every image becomes one square of SigLIP's size, between two markers and empty lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families import VisualItem, grid_boxes, one_run
from foveate.runtime.manifest import Record
from foveate.runtime.pretrained import load_image_processor


class Facts(Record):
    """`side`: visual tokens along a side of a picture."""

    image_size: int
    side: int


class Preprocessor:
    """The checkpoint's own image processor, without pan and scan, which is off by default there, too."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], image_token: str) -> None:
        self._folder = folder
        self._facts = Facts.model_validate(dict(facts))
        self._token = image_token

    @cached_property
    def placeholders(self) -> Mapping[str, str]:
        """The template writes the marker that opens an image."""
        return {"image": self._markers[0]}

    def image(self, image: Image.Image, of: int = 1) -> VisualItem:
        """One square of pixels `[1, 3, size, size]`: the whole picture, squeezed where it is none."""
        made = self._processor([image], do_pan_and_scan=False, return_tensors="np")
        pixels = np.ascontiguousarray(made["pixel_values"], np.float32)
        size = self._facts.image_size
        if pixels.shape[2:] != (size, size):
            raise BundleError(
                "the image processor does not fit the model",
                found=f"{list(pixels.shape[2:])} pixels",
                wanted=f"[{size}, {size}]",
                mend="compare preprocessor_config.json with vision_config.image_size, and export again",
            )
        first, last = self._markers
        boxes = grid_boxes(self._facts.side, self._facts.side)
        return VisualItem(
            kind="image",
            feeds={"pixel_values": pixels},
            text=f"\n\n{first}{self._token}{last}\n\n",
            boxes=boxes,
            frame=np.zeros(len(boxes), np.int64),
            **one_run(len(boxes)),
        )

    def video(self, frames: Sequence[Image.Image], fps: float) -> VisualItem:
        """Always refused."""
        raise InputError("this model takes no videos", mend="give single frames as images")

    @cached_property
    def _markers(self) -> tuple[str, str]:
        """What stands before and behind an image; the tokenizer's file says it, which is quick to read."""
        path = self._folder / "tokenizer_config.json"
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = [_text(told, "boi_token"), _text(told, "eoi_token")]
        if None in found:
            raise BundleError(
                f"{path} does not name the markers of an image",
                found=f"boi_token {found[0]!r}, eoi_token {found[1]!r}",
                mend="take the tokenizer's files from the page of the model, and export again",
            )
        return str(found[0]), str(found[1])

    @cached_property
    def _processor(self) -> Any:
        return load_image_processor(self._folder)


def _text(told: Mapping[str, Any], name: str) -> str | None:
    """A token's text, in any of the forms in which tokenizers have been saved."""
    special = told.get("extra_special_tokens")
    value = told.get(name) or (special.get(name) if isinstance(special, Mapping) else None)
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None
