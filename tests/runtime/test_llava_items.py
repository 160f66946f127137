"""LLaVA's images: transformers' pixels, and boxes that say what each patch shows of the original picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families import find_preprocessor
from foveate.runtime.families.llava import Preprocessor

SIDE, PATCH = 56, 14
GRID = SIDE // PATCH
FACTS = {"image_size": SIDE, "patch_size": PATCH}
CROP = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
TALL = CLIPImageProcessorPil(size={"shortest_edge": SIDE + 24}, crop_size={"height": SIDE, "width": SIDE})
SQUEEZE = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
PAD = LlavaImageProcessorPil(
    size={"height": SIDE, "width": SIDE}, do_pad=True, do_center_crop=False, image_mean=[0.5] * 3
)


def make(folder: Path, processor: Any, **facts: Any) -> Preprocessor:
    processor.save_pretrained(folder)
    return Preprocessor(folder, FACTS | facts, "<image>")


def ramp(width: int, height: int) -> Image.Image:
    """Red tells how far right a pixel is, green how far down."""
    y, x = np.mgrid[0:height, 0:width]
    share = np.stack([(x + 0.5) / width, (y + 0.5) / height, 0 * x], axis=-1)
    return Image.fromarray((share * 255).round().astype(np.uint8))


@pytest.mark.parametrize("processor", [CROP, TALL, SQUEEZE, PAD], ids=["crop", "tall", "squeeze", "pad"])
@pytest.mark.parametrize("size", [(140, 140), (300, 150), (90, 250)])
def test_boxes_are_where_the_patches_come_from(tmp_path: Path, processor: Any, size: tuple[int, int]) -> None:
    """The mean colour of a patch tells the middle of its box."""
    item = make(tmp_path, processor).image(ramp(*size))
    pixels = item.feeds["pixel_values"]
    np.testing.assert_array_equal(pixels, processor([ramp(*size)], return_tensors="np")["pixel_values"])
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    colors = pixels[0].transpose(1, 2, 0) * std + mean  # 3 h w -> h w 3
    seen = 0
    for index, box in enumerate(item.boxes):
        r, c = divmod(index, GRID)
        patch = colors[r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
        if np.isnan(box).any() or patch[:, :, 2].max() > 0.1:
            # Padding; at its edge a patch may show some of the picture.
            assert processor is PAD
            continue
        seen += 1
        assert ((box >= 0) & (box <= 1)).all()
        middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        np.testing.assert_allclose(patch[:, :, :2].mean(axis=(0, 1)), middle, atol=0.015)
    assert seen >= GRID or processor is PAD
    assert (item.visual_tokens, item.runs.tolist(), item.spans.tolist()) == (GRID**2, [GRID**2], [GRID**2])
    assert item.positions[:, 0].tolist() == list(range(GRID**2))
    assert item.text == "<image>"


def test_the_cls_token_shows_nothing(tmp_path: Path) -> None:
    item = make(tmp_path, CROP, keep_cls=True).image(ramp(60, 60))
    assert item.visual_tokens == GRID**2 + 1 == len(item.boxes) == len(item.frame)
    assert np.isnan(item.boxes[0]).all()
    np.testing.assert_allclose(item.boxes[1], [0, 0, 1 / GRID, 1 / GRID], atol=1e-6)


def test_what_does_not_fit(tmp_path: Path) -> None:
    assert find_preprocessor("llava") is Preprocessor
    with pytest.raises(BundleError, match=r"does not fit the model.*\[56, 56\].*\[28, 28\]"):
        make(tmp_path, CROP, image_size=28).image(ramp(60, 60))
    with pytest.raises(InputError, match="takes no videos"):
        make(tmp_path, CROP).video([ramp(60, 60)], 1.0)
