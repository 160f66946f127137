"""The Qwen-VL families' host side: sizes and geometry against transformers' own functions, and refusals."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_video
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families import qwen2_vl, qwen3_vl

SIDES = st.integers(1, 9)
FACTS: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}


@given(SIDES, SIDES, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_windows_are_those_of_transformers(rows: int, columns: int, side: int) -> None:
    index, place = qwen2_vl.attention_windows(rows, columns, side)
    order, bounds = get_vision_window_index(torch.tensor([[1, 2 * rows, 2 * columns]]), 2, 28 * side, 14)
    cells = bounds // 4
    wanted = [order[a:b].tolist() for a, b in pairwise(cells.tolist())]
    assert [[cell for cell in window if cell >= 0] for window in index.tolist()] == wanted
    assert index.reshape(-1)[place].tolist() == list(range(rows * columns))


@given(SIDES, SIDES, st.integers(2, 7))
@settings(max_examples=60, deadline=None)
def test_places_are_those_of_transformers(rows: int, columns: int, side: int) -> None:
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    coords = qwen2_vl.patch_coords(rows, columns, 2)
    assert np.array_equal(coords.reshape(-1, 2), get_vision_position_ids(grid, 2).numpy())
    index, weight = qwen3_vl.table_neighbours(coords, (2 * rows, 2 * columns), side)
    taps, shares = get_vision_interpolation_indices_and_weights(
        grid, side, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    assert np.array_equal(index.reshape(-1, 4), taps.numpy())
    np.testing.assert_allclose(weight.reshape(-1, 4), shares.numpy(), atol=1e-6)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 40), st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_frames_are_scaled_as_transformers_scales_them(
    height: int, width: int, fewest: int, more: int
) -> None:
    limits = (fewest * 28 * 28, (fewest + more) * 28 * 28)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError, match="too slim"):
            qwen2_vl.fitted_size(height, width, 28, *limits)
        return
    assert qwen2_vl.fitted_size(height, width, 28, *limits) == smart_resize(height, width, 28, *limits)


@given(st.integers(2, 40), st.integers(1, 900), st.integers(1, 900))
@settings(max_examples=300, deadline=None)
def test_a_video_is_scaled_as_transformers_scales_it(frames: int, height: int, width: int) -> None:
    made = preprocessor(Path("nowhere"), family=qwen3_vl, patch_size=16)
    made.__dict__["_video_settings"] = {"size": {"shortest_edge": 4 * 32**2, "longest_edge": 900 * 32**2}}
    try:
        wanted = smart_resize_video(frames, height, width, 2, 32, 4 * 32**2, 900 * 32**2)
    except ValueError:
        with pytest.raises(InputError, match="too slim"):
            made.frame_size(frames, height, width)
        return
    assert made.frame_size(frames, height, width) == wanted


def preprocessor(folder: Path, family: Any = qwen2_vl, **facts: Any) -> Any:
    return family.Preprocessor(folder, FACTS | facts, "<|image_pad|>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 40 * 28 * 28}
    Qwen2VLImageProcessorPil(size=pixels).save_pretrained(tmp_path)
    return tmp_path


def frames(count: int, size: tuple[int, int] = (84, 56)) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    return [Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)) for _ in range(count)]


def test_a_still_video_looks_like_the_image(folder: Path) -> None:
    made = preprocessor(folder)
    (frame,) = frames(1)
    image, video = made.image(frame), made.video([frame, frame], 2.0)
    np.testing.assert_array_equal(image.feeds["patches"], video.feeds["patches"])
    assert image.positions.tolist() == video.positions.tolist()


def test_each_step_of_time_shows_two_frames(folder: Path) -> None:
    made, (first, second, third) = preprocessor(folder), frames(3)
    video = made.video([first, second, third], 2.0)
    for step, pair in enumerate(((first, second), (third, third))):
        for depth, frame in enumerate(pair):
            patches = video.feeds["patches"][step].reshape(6, 4, 3, 2, 14 * 14)
            alone = made.image(frame).feeds["patches"][0].reshape(6, 4, 3, 2, 14 * 14)
            np.testing.assert_array_equal(patches[:, :, :, depth], alone[:, :, :, depth])
    assert video.frame.tolist() == [0] * 6 + [2] * 6
    assert video.text == "<|video_pad|>"


def test_real_time_runs_through_the_positions(folder: Path) -> None:
    slow = preprocessor(folder, tokens_per_second=4).video(frames(6), 0.5)
    assert slow.positions[:, 0].tolist() == [0] * 6 + [16] * 6 + [32] * 6
    assert slow.spans.tolist() == [3]  # what follows goes on behind the picture's sides, not behind its time


def test_the_times_of_qwen3_are_written_out(folder: Path) -> None:
    video = preprocessor(folder, family=qwen3_vl, position_side=4).video(frames(3), 2.0)
    start, stop = "<|vision_start|>", "<|vision_end|>"
    assert video.text == "".join(f"<{t} seconds>{start}<|video_pad|>{stop}" for t in ("0.2", "1.0"))
    assert video.runs.tolist() == [video.visual_tokens // 2] * 2
    assert set(video.positions[:, 0].tolist()) == {0}


@pytest.mark.parametrize("where", ["video_preprocessor_config.json", "processor_config.json"])
def test_videos_have_limits_of_their_own(folder: Path, where: str) -> None:
    limits = {"min_pixels": 28 * 28, "max_pixels": 2 * 28 * 28}
    content = {"video_processor": limits} if where == "processor_config.json" else limits
    (folder / where).write_text(json.dumps(content))
    made, (frame,) = preprocessor(folder), frames(1, (112, 112))
    assert made.image(frame).visual_tokens == 16
    assert made.video([frame], 1.0).visual_tokens == 1


def test_refusals(folder: Path) -> None:
    with pytest.raises(InputError, match="aspect ratio"):
        preprocessor(folder).image(Image.new("RGB", (3000, 2)))
    with pytest.raises(InputError, match="too short"):
        preprocessor(folder, family=qwen3_vl, position_side=4).video(frames(1), 2.0)
    with pytest.raises(BundleError, match="does not fit"):
        preprocessor(folder, patch_size=16).image(frames(1)[0])
