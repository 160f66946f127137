"""The picture of kept tokens: kept patches as they were, dropped ones dimmed, every patch in its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.tools.account import as_seen
from foveate.tools.pictures import MARGIN, Panel, draw_kept

GRID = (3, 4)
SIZE = 30  # pixels of a patch


@pytest.fixture
def scene() -> Image.Image:
    """One strong colour for each patch."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, size=(*GRID, 3)).astype(np.uint8)
    return Image.fromarray(colors.repeat(SIZE, 0).repeat(SIZE, 1))


def _panel(page: Image.Image, number: int, width: int, height: int) -> np.ndarray:
    """The pixels of a panel of the first row; 48 is the height of its titles."""
    left, top = MARGIN + number * (width + MARGIN), MARGIN + 48
    return np.asarray(page.crop((left, top, left + width, top + height)))


def test_kept_patches_stay_and_dropped_ones_are_dimmed(scene: Image.Image) -> None:
    kept = (0, 5, 11)
    page = draw_kept([scene], [[Panel("after the encoder", kept)]], GRID)
    scale = round(360 / scene.width)
    width, height = scene.width * scale, scene.height * scale
    before, after = _panel(page, 0, width, height), _panel(page, 1, width, height)
    step = SIZE * scale
    for index in range(GRID[0] * GRID[1]):
        row, column = divmod(index, GRID[1])
        middle = (row * step + step // 2, column * step + step // 2)
        same = np.array_equal(before[middle], after[middle])
        assert same == (index in kept), index
        if index not in kept:
            assert int(after[middle].min()) > 130, "dimmed patches are pale"


def test_one_row_for_each_image_and_one_panel_for_each_site(scene: Image.Image) -> None:
    sites = [Panel("after the encoder", (1, 2)), Panel("after decoder layer 2", (2,))]
    one = draw_kept([scene], [sites], GRID)
    two = draw_kept([scene, scene], [sites, sites], GRID, caption="What is this?")
    assert two.height > 2 * one.height - 3 * MARGIN
    assert two.width == one.width
    assert draw_kept([scene], [sites[:1]], GRID).width < one.width


def test_a_site_may_keep_nothing_of_an_image(scene: Image.Image) -> None:
    assert draw_kept([scene], [[Panel("after decoder layer 2", ())]], GRID).width > 0


@pytest.mark.parametrize("kept", [(12,), (-1,)])
def test_indices_outside_the_grid_are_refused(scene: Image.Image, kept: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="3 x 4"):
        draw_kept([scene], [[Panel("x", kept)]], GRID)


def test_images_and_panels_must_match(scene: Image.Image) -> None:
    with pytest.raises(ValueError, match="2 images"):
        draw_kept([scene, scene], [[Panel("x", (1,))]], GRID)


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config", "processor_config"])
def test_pixels_are_shown_as_they_were(scene: Image.Image, tmp_path: Path, nested: bool) -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    content = {"image_mean": mean, "image_std": std}
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": content} if nested else content))
    pixels = np.asarray(scene, np.float32) / 255
    normal = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)  # h w c -> 1 c h w
    (seen,) = as_seen(normal, tmp_path)
    assert np.array_equal(np.asarray(seen), np.asarray(scene))
