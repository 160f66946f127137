"""Pictures of many sizes through the processors of families whose graphs follow a picture's size."""

from __future__ import annotations

import json

import pytest
import tiny
from PIL import Image

from foveate.export.engines.pictures import Samples, sample_pictures
from foveate.export.families import load_family
from foveate.runtime.manifest import ModelRecord
from foveate.runtime.processor import Processor
from foveate.runtime.visuals import Visual

# What a user might show: sizes that are not among those that are tried.
SHOWN = ((640, 480), (100, 77), (1000, 999), (720, 1280))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava_next"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Processor:
    folder = tiny.make(request.param, tmp_path_factory.mktemp(request.param) / "checkpoint")
    family = load_family(request.param)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = family.Config.read(written)
    sizes = dict.fromkeys(
        ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "vision_width"),
        1,
    )
    model = ModelRecord(
        **sizes,
        max_positions=512,
        image_token_id=config.image_token_id,
        bos_token_id=None,
        eos_token_ids=(0,),
        pad_token_id=None,
        vision=family.runtime_facts(config),
    )
    return Processor(folder, model, request.param)


@pytest.fixture(scope="module")
def samples(processor: Processor) -> Samples:
    return sample_pictures(processor)


def test_pictures_of_other_sizes_lie_between_those_that_were_tried(
    processor: Processor, samples: Samples
) -> None:
    for size in SHOWN:
        item = processor.made(Visual("image", Image.new("RGB", size))).item
        assert item is not None
        assert item.visual_tokens <= samples.most_tokens
        for name, value in item.feeds.items():
            shapes = [sample.shapes[name] for sample in samples.every]
            for length, tried in zip(value.shape, zip(*shapes, strict=True), strict=True):
                assert min(tried) <= length <= max(tried), (name, size)


def test_a_limit_leaves_only_smaller_ones(samples: Samples) -> None:
    fewest = min(sample.tokens for sample in samples.every)
    some = samples.within(fewest)
    assert {sample.tokens for sample in some.every} == {fewest}
    assert some.typical.tokens == fewest
    assert len(some.every) < len(samples.every)
