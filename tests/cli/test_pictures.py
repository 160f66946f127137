"""The picture of kept tokens: kept patches as they were, dropped ones dimmed, every patch in its place."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveate.tools.pictures import FRAME, MARGIN, Panel, Shown, draw_kept

GRID = (3, 4)
SIZE = 30  # pixels of a patch
BOXES = tuple(
    (c / GRID[1], r / GRID[0], (c + 1) / GRID[1], (r + 1) / GRID[0])
    for r in range(GRID[0])
    for c in range(GRID[1])
)
N = len(BOXES)


def drawn(picture: Image.Image, *panels: Panel, times: int = 1, caption: str = "") -> Image.Image:
    return draw_kept([Shown([picture], BOXES, [0] * N, panels)] * times, caption)


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
    page = drawn(scene, Panel("after the encoder", kept))
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
    one = drawn(scene, *sites)
    two = drawn(scene, *sites, times=2, caption="What is this?")
    assert two.height > 2 * one.height - 3 * MARGIN
    assert two.width == one.width
    assert drawn(scene, *sites[:1]).width < one.width


def test_a_site_may_keep_nothing_of_an_image(scene: Image.Image) -> None:
    assert drawn(scene, Panel("after decoder layer 2", ())).width > 0


@pytest.mark.parametrize("kept", [(12,), (-1,)])
def test_tokens_that_are_not_there_are_refused(scene: Image.Image, kept: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not among the 12"):
        drawn(scene, Panel("x", kept))


def test_boxes_may_overlap_and_tokens_may_show_nothing(scene: Image.Image) -> None:
    """Tiles and a small picture of the whole: what any kept token shows is not dimmed."""
    boxes = [(0.0, 0.0, 1.0, 1.0), None, (0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75)]

    def after(*kept: int) -> np.ndarray:
        page = draw_kept([Shown([scene], boxes, [0] * 4, [Panel("x", kept)])])
        scale = round(360 / scene.width)
        return _panel(page, 1, scene.width * scale, scene.height * scale)

    whole, nothing, both = after(0), after(1), after(2, 3)
    inside = np.zeros(whole.shape[:2], bool)
    height, width = inside.shape
    inside[: height // 2, : width // 2] = True
    inside[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
    core = inside & _far_from_edges(inside)
    np.testing.assert_array_equal(both[core], whole[core])
    np.testing.assert_array_equal(both[~inside], nothing[~inside])


def _far_from_edges(mask: np.ndarray) -> np.ndarray:
    far = mask.copy()
    for down in range(-3, 4):
        for right in range(-3, 4):
            far &= np.roll(mask, (down, right), (0, 1))
    far[:4], far[-4:], far[:, :4], far[:, -4:] = False, False, False, False
    return far


def test_videos_are_strips_of_the_frames_that_tokens_show(scene: Image.Image) -> None:
    """Four frames, of which each token shows two: frames 0 and 2 stand for them."""
    boxes, frames = [*BOXES, *BOXES], [0] * N + [2] * N
    kept = (0, N + 5)
    page = draw_kept([Shown([scene] * 4, boxes, frames, [Panel("after the encoder", kept)])])
    scale = round(FRAME / scene.width)
    width, height = scene.width * scale, scene.height * scale
    pixels = np.asarray(page)
    before = pixels[MARGIN + 48 :][:height, MARGIN:]
    after = pixels[MARGIN + 48 + height + MARGIN + 48 :][:height, MARGIN:]
    for index in range(2 * N):
        frame, (row, column) = index // N, divmod(index % N, GRID[1])
        y = row * SIZE * scale + SIZE * scale // 2
        x = frame * (width + 2) + column * SIZE * scale + SIZE * scale // 2
        assert np.array_equal(before[y, x], after[y, x]) == (index in kept), index
    with pytest.raises(ValueError, match="frame 2 of 2"):
        draw_kept([Shown([scene] * 2, boxes, frames, [])])
