"""Gemma 3's preprocessor: markers from the tokenizer's file, squares of one size, no videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families.gemma3 import Preprocessor

FACTS = {"image_size": 28, "side": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path, "preprocessor_config.json", {"size": {"height": 28, "width": 28}})
    _write(tmp_path, "tokenizer_config.json", {"boi_token": "<b>", "eoi_token": "<e>"})
    return tmp_path


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    own = {"image_processor_type": "Gemma3ImageProcessor"} if name.startswith("pre") else {}
    (folder / name).write_text(json.dumps({**own, **content}))


def test_an_image_is_one_square_between_markers(folder: Path) -> None:
    preprocessor = Preprocessor(folder, FACTS, "<soft>")
    assert preprocessor.placeholders == {"image": "<b>"}
    item = preprocessor.image(Image.new("RGB", (90, 40), "red"))
    assert item.text == "\n\n<b><soft><e>\n\n"
    assert item.feeds["pixel_values"].shape == (1, 3, 28, 28)
    assert (item.runs.tolist(), item.visual_tokens) == ([4], 4)
    assert item.boxes.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]


@pytest.mark.parametrize(
    "told",
    [
        {"boi_token": {"content": "<b>"}, "eoi_token": {"content": "<e>"}},
        {"extra_special_tokens": {"boi_token": "<b>", "eoi_token": "<e>"}},
    ],
)
def test_markers_in_any_spelling(folder: Path, told: dict[str, Any]) -> None:
    _write(folder, "tokenizer_config.json", told)
    assert Preprocessor(folder, FACTS, "<soft>").placeholders == {"image": "<b>"}


def test_pan_and_scan_is_off_as_in_transformers(folder: Path) -> None:
    on = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8, "pan_and_scan_max_num_crops": 4}
    size = {"size": {"height": 28, "width": 28}, "pan_and_scan_min_ratio_to_activate": 1.2}
    _write(folder, "preprocessor_config.json", {**on, **size})
    item = Preprocessor(folder, FACTS, "<soft>").image(Image.new("RGB", (120, 30)))
    assert item.feeds["pixel_values"].shape == (1, 3, 28, 28)


def test_refusals_say_what_is_wrong(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"\[28, 28\] pixels"):
        Preprocessor(folder, {**FACTS, "image_size": 42}, "<soft>").image(Image.new("RGB", (5, 5)))
    with pytest.raises(InputError, match="no videos"):
        Preprocessor(folder, FACTS, "<soft>").video([Image.new("RGB", (5, 5))], 1.0)
    _write(folder, "tokenizer_config.json", {"boi_token": "<b>"})
    with pytest.raises(BundleError, match="eoi_token None"):
        _ = Preprocessor(folder, FACTS, "<soft>").placeholders


def test_pixels_are_transformers_own(folder: Path) -> None:
    from transformers import Gemma3ImageProcessorPil

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (33, 57, 3), np.uint8))
    wanted = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})([picture], return_tensors="np")
    item = Preprocessor(folder, FACTS, "<soft>").image(picture)
    assert np.array_equal(item.feeds["pixel_values"], wanted["pixel_values"])
