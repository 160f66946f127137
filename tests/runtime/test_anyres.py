"""Pictures on canvases: geometry against transformers' own functions, whole items against its processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from foveate.export.families import find_family
from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families import VisualItem, find_preprocessor
from foveate.runtime.families.anyres import Canvas, bilinear, fewer, fit
from foveate.tools.parity.families import find_oracle

FAMILIES = ("llava_next", "llava_onevision")
# (width, height): of a tile's size, smaller than one, many tiles, very wide, very tall, thinner than a patch.
SIZES = ((70, 70), (14, 7), (90, 71), (640, 480), (300, 40), (41, 300), (1000, 10), (10, 1000), (3, 900))
CANVASES = ((70, 140), (140, 70), (140, 140), (210, 70), (70, 210))


def pictures(count: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    return [tuple(int(x) for x in np.exp(rng.uniform(0.7, 7.5, 2))) for _ in range(count)]


@pytest.mark.parametrize("size", pictures(60))
def test_canvas_and_window_are_transformers(size: tuple[int, int]) -> None:
    wanted = select_best_resolution(size, [list(canvas) for canvas in CANVASES])
    canvas = fit(size, CANVASES, 70, 14)
    assert canvas.canvas == wanted
    high, wide = wanted[0] // 70, wanted[1] // 70
    number = torch.arange(25 * high * wide).reshape(high, wide, 5, 5) + 25  # tile 0 has the first 25
    number = number.permute(0, 2, 1, 3).reshape(1, high * 5, wide * 5)  # high wide r c -> 1 (high r) (wide c)
    assert np.array_equal(canvas.patches(), unpad_image(number, size)[0].numpy())
    assert canvas.tiles == 1 + high * wide


@pytest.mark.parametrize("given", [(27, 27), (5, 5), (54, 31), (4, 6), (1, 9)])
@pytest.mark.parametrize("wanted", [(14, 14), (3, 3), (40, 30), (2, 3), (1, 4)])
def test_resampling_is_torchs(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    values = torch.randn(given)
    number, weight = bilinear(given, wanted)
    got = (values.reshape(-1).numpy()[number] * weight).sum(axis=1).reshape(wanted)
    want = torch.nn.functional.interpolate(values[None, None], wanted, mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert (np.diff(weight, axis=1) <= 0).all()  # the heaviest first


def test_only_a_surplus_is_resampled() -> None:
    assert fewer(81, 81, 27, 9) == (81, 81)
    assert fewer(108, 81, 27, 9) == (93, 70)
    assert fewer(85, 85, 27, 9) == (85, 85)  # one tenth more may stay


def test_boxes_tile_the_picture() -> None:
    canvas = Canvas(picture=(60, 100), canvas=(140, 210), tile=70, patch=14)
    _, _, rows, columns = canvas.window
    boxes = canvas.boxes(rows, columns)
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()
    assert 0.9 < area <= 1.0001
    assert (boxes[:, :2].min(), boxes[:, 2].max()) == (0, 1)
    # A canvas of tiles that are wider than their patches leaves stripes out.
    gaps = Canvas(picture=(76, 76), canvas=(76, 76), tile=38, patch=7)
    boxes = gaps.boxes(10, 10)
    np.testing.assert_allclose(boxes[[4, 5], 0] * 76, [28, 38], atol=1e-4)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' side and ours, of one tiny checkpoint."""
    return sides(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return sides("llava_onevision", tmp_path_factory.mktemp("llava_onevision"))


def sides(name: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    checkpoint = tiny.make(name, folder, **options)
    return find_oracle(name)(checkpoint), preprocessor(checkpoint)


def preprocessor(checkpoint: Path, **facts: Any) -> Any:
    name, family = find_family(json.loads((checkpoint / "config.json").read_text()))
    read = family.Config.read(json.loads((checkpoint / "config.json").read_text()))
    return find_preprocessor(name)(checkpoint, {**family.runtime_facts(read), **facts}, "<image>")


def ask(*kinds: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": "?"}]}]


def check(item: VisualItem, tokens: int, pixels: np.ndarray, *, noise: float = 0.0) -> None:
    n = item.visual_tokens
    assert n == tokens
    np.testing.assert_allclose(item.feeds["pixel_values"], pixels, rtol=0, atol=noise)
    assert (item.positions.shape, item.boxes.shape, item.frame.shape) == ((n, 1), (n, 4), (n,))
    assert (item.runs == [n]).all()
    assert (item.spans == [n]).all()
    assert (item.positions[:, 0] == np.arange(n)).all()
    seen = item.boxes[~np.isnan(item.boxes[:, 0])]
    assert (seen[:, :2] < seen[:, 2:]).all()
    assert seen.min() >= 0
    assert seen.max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_what_transformers_makes_of_it(both: tuple[Any, Any], size: tuple[int, int]) -> None:
    oracle, ours = both
    image = tiny.make_image(3, size)
    encoded = oracle.encode(ask("image"), [image])
    check(ours.image(image), sum(encoded.visual), oracle.pixels(encoded.inputs)[0]["pixel_values"])


def test_several_pictures_have_no_crops(onevision: tuple[Any, Any]) -> None:
    oracle, ours = onevision
    images = [tiny.make_image(1, (90, 50)), tiny.make_image(2, (50, 140))]
    encoded = oracle.encode(ask("image", "image"), images)
    for i, pixels in enumerate(oracle.pixels(encoded.inputs)):
        tokens = sum(number == i for number in encoded.item)
        assert tokens == 26
        check(ours.image(images[i], of=2), tokens, pixels["pixel_values"])


@pytest.mark.parametrize("frames", [1, 5])
def test_a_video_is_what_transformers_makes_of_it(onevision: tuple[Any, Any], frames: int) -> None:
    oracle, ours = onevision
    video = ([tiny.make_image(i, (75, 60)) for i in range(frames)], 2.0)
    encoded = oracle.encode(ask("video"), [], [video])
    item = ours.video(*video)
    # In another order of the same arithmetic.
    check(item, sum(encoded.visual), oracle.pixels(encoded.inputs)[0]["pixel_values"], noise=1e-6)
    assert list(np.bincount(item.frame)) == [9] * (frames - 1) + [10]


def test_videos_are_refused_where_the_model_has_none(tmp_path: Path) -> None:
    ours = preprocessor(tiny.make("llava_next", tmp_path))
    with pytest.raises(InputError, match="no videos"):
        ours.video([tiny.make_image(1)], 2.0)


def test_a_processor_for_other_tiles_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny.make("llava_next", tmp_path)
    for facts in ({"image_size": 35, "patch_size": 7}, {"canvases": ((280, 280),)}):
        with pytest.raises(BundleError, match="does not fit"):
            preprocessor(checkpoint, **facts).image(tiny.make_image(1, (90, 70)))
