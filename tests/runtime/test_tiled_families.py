"""Pictures cut into tiles: prompts, pixels and boxes, against transformers' own processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from foveate.export.families import find_family
from foveate.runtime.errors import BundleError, InputError
from foveate.runtime.families import VisualItem, find_preprocessor
from foveate.runtime.families.internvl import best_tiling
from foveate.runtime.families.smolvlm import number_words
from foveate.runtime.families.tiles import tile_boxes
from foveate.tools.parity.families import Encoded, find_oracle

FAMILIES = ("internvl", "idefics3", "smolvlm")
# (width, height): one tile, many, very wide, very tall, a single pixel row.
SIZES = ((44, 44), (56, 56), (90, 70), (300, 20), (15, 260), (120, 1), (57, 56))


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' side and ours, of one tiny checkpoint."""
    checkpoint = tiny.make(request.param, tmp_path_factory.mktemp(request.param))
    return find_oracle(request.param)(checkpoint), preprocessor(checkpoint)


def preprocessor(checkpoint: Path) -> Any:
    """What a bundle of the checkpoint would preprocess with."""
    config = json.loads((checkpoint / "config.json").read_text())
    name, family = find_family(config)
    read = family.Config.read(config)
    tokens = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
    image_token = next(token["content"] for token in tokens if token["id"] == read.image_token_id)
    return find_preprocessor(name)(checkpoint, family.runtime_facts(read), image_token)


def ask(kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What is it?"}]}]


def expanded(oracle: Any, ours: Any, item: VisualItem) -> list[int]:
    """Our ids: the placeholder replaced, tokenised, and every run written out."""
    text = oracle.render(ask(item.kind)).replace(ours.placeholders[item.kind], item.text, 1)
    runs = iter(item.runs)
    ids: list[int] = []
    for token in oracle.tokenizer(text, add_special_tokens=False)["input_ids"]:
        ids += [token] * (int(next(runs)) if token in oracle.visual_ids else 1)
    assert next(runs, None) is None
    return ids


def check(oracle: Any, ours: Any, item: VisualItem, encoded: Encoded) -> None:
    (pixels,) = oracle.pixels(encoded.inputs)
    n = item.visual_tokens
    assert expanded(oracle, ours, item) == list(encoded.input_ids)
    np.testing.assert_array_equal(item.feeds["pixel_values"], pixels["pixel_values"])
    assert (item.positions.shape, item.boxes.shape, item.frame.shape) == ((n, 1), (n, 4), (n,))
    assert (item.spans == item.runs).all()
    places = np.concatenate([np.arange(run) for run in item.runs])
    assert (item.positions[:, 0] == places).all()
    assert (item.boxes[:, :2] < item.boxes[:, 2:]).all()
    assert (item.boxes.min(), item.boxes.max()) == (0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_what_transformers_makes_of_it(both: tuple[Any, Any], size: tuple[int, int]) -> None:
    oracle, ours = both
    image = tiny.make_image(3, size) if min(size) > 1 else tiny.make_image(3, (120, 9)).resize(size)
    check(oracle, ours, ours.image(image), oracle.encode(ask("image"), [image]))


def test_boxes_cover_the_picture_once_in_tiles_and_once_whole(both: tuple[Any, Any]) -> None:
    _, ours = both
    item = ours.image(tiny.make_image(3, (300, 120)))
    area = np.prod(item.boxes[:, 2:] - item.boxes[:, :2], axis=1, dtype=np.float64)
    per_tile = area.reshape(len(item.feeds["pixel_values"]), -1).sum(axis=1)
    assert per_tile[-1] == pytest.approx(1.0)
    assert per_tile[:-1].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("fps", [2.0, 0.4, 0.013])
def test_a_video_is_what_transformers_makes_of_its_frames(both: tuple[Any, Any], fps: float) -> None:
    oracle, ours = both
    frames = [tiny.make_image(seed, (60, 40)) for seed in range(3)]
    if "video" not in ours.placeholders:
        with pytest.raises(InputError, match="takes no videos"):
            ours.video(frames, fps)
        return
    item = ours.video(frames, fps)
    check(oracle, ours, item, oracle.encode(ask("video"), [], [(frames, fps)]))
    assert (item.frame == np.repeat([0, 1, 2], item.runs)).all()


def test_too_many_frames_are_refused(both: tuple[Any, Any]) -> None:
    oracle, ours = both
    if type(oracle).__module__.endswith("smolvlm"):
        with pytest.raises(InputError, match="too many frames"):
            ours.video([tiny.make_image(0, (8, 8))] * 1000, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_processor_of_another_size_is_refused(family: str, tmp_path: Path) -> None:
    checkpoint = tiny.make(family, tmp_path)
    file = checkpoint / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings |= {"max_image_size": {"longest_edge": 30}}
    if family == "internvl":
        settings["size"] = {"height": 30, "width": 30}
    file.write_text(json.dumps(settings))
    with pytest.raises(BundleError, match="does not fit the model"):
        preprocessor(checkpoint).image(tiny.make_image(0, (50, 50)))


def test_internvl_tiles_pictures_as_transformers_does() -> None:
    random = np.random.default_rng(5)
    for width, height in random.integers(1, 1500, (3000, 2)).tolist():
        tile, fewest = int(random.choice([56, 448])), int(random.integers(1, 4))
        most = int(random.integers(fewest, 13))
        columns, rows = get_optimal_tiled_canvas((height, width), (tile, tile), fewest, most)
        assert best_tiling((width, height), tile, fewest, most) == (rows, columns)


def test_tile_boxes_stand_in_raster_order_with_the_whole_behind_them() -> None:
    assert tile_boxes(1, 2, 1).tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1]]
    assert tile_boxes(1, 1, 2)[1].tolist() == [0.5, 0, 1, 0.5]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "one"),
        (12, "twelve"),
        (20, "twenty"),
        (64, "sixty-four"),
        (100, "one hundred"),
        (121, "one hundred and twenty-one"),
        (999, "nine hundred and ninety-nine"),
    ],
)
def test_numbers_are_written_out(number: int, words: str) -> None:
    assert number_words(number) == words


@pytest.mark.parametrize("first", ["image", "video", "text"])
def test_smolvlm_writes_videos_with_the_template_that_transformers_has_for_them(
    first: str, tmp_path: Path
) -> None:
    from jinja2 import Environment
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    ours = preprocessor(tiny.make("smolvlm", tmp_path))
    head = {"type": first, "text": "See:"} if first == "text" else {"type": first}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    messages = [{"role": "user", "content": [head, *ask("video")[0]["content"]]}, answer, *ask("image")]
    for closing in (True, False):
        mine, theirs = (
            Environment().from_string(t).render(messages=messages, add_generation_prompt=closing)
            for t in (ours.video_template, DEFAULT_CHAT_TEMPLATE)
        )
        assert mine == theirs
