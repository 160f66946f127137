"""InternVL, Idefics3, SmolVLM: configurations that are refused, names of weights, positions in float32."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import tiny
import torch
from transformers import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

from foveate.export.blocks.idefics_vision import position_buckets
from foveate.export.blocks.pixel_shuffle import PixelShuffle
from foveate.export.families import find_family, load_family
from foveate.runtime.errors import CheckpointError


@pytest.fixture(scope="module", params=["internvl", "idefics3", "smolvlm"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny checkpoint's `config.json`."""
    checkpoint = tiny.make(request.param, tmp_path_factory.mktemp(request.param))
    read: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    return read


REFUSED: dict[str, tuple[tuple[str, Any], ...]] = {
    "internvl": (
        ("vision_feature_layer", [-1, -2]),
        ("vision_feature_layer", 5),
        ("vision_feature_select_strategy", "full"),
        ("downsample_ratio", 1 / 3),
        ("downsample_ratio", 0.125),
        ("downsample_ratio", 2.0),
        ("image_token_id", 10**6),
        ("vision_config.image_size", [56, 70]),
        ("vision_config.norm_type", "batch_norm"),
        ("vision_config.num_channels", 1),
        ("vision_config.patch_size", 60),
        ("text_config.model_type", "gpt_oss"),
    ),
    "idefics3": (
        ("scale_factor", 4),
        ("scale_factor", 0),
        ("image_token_id", 10**6),
        ("vision_config.num_channels", 1),
        ("vision_config.num_attention_heads", 5),
        ("text_config.model_type", "gpt_oss"),
    ),
}
REFUSED["smolvlm"] = REFUSED["idefics3"]


def test_what_does_not_fit_is_refused_by_name(config: dict[str, Any]) -> None:
    family = load_family(config["model_type"])
    for path, value in REFUSED[config["model_type"]]:
        *sections, key = path.split(".")
        changed = copy.deepcopy(config)
        section = changed[sections[0]] if sections else changed
        section[key] = value
        if key == "model_type":
            match = "text model"
        elif key == "num_attention_heads":
            match = "hidden_size"
        else:
            match = key
        with pytest.raises(CheckpointError, match=match):
            family.Config.read(changed)


def test_defaults_are_those_of_transformers(config: dict[str, Any]) -> None:
    _, family = find_family(config)
    text = dict(config["text_config"], vocab_size=200_000)
    given = {"model_type": config["model_type"], "text_config": text}
    if config["model_type"] != "internvl":
        given["scale_factor"] = 7  # transformers' own default, 2, does not divide the 7 patches of a side
    read = family.Config.read(given)
    if config["model_type"] == "internvl":
        assert (read.vision.image_size, read.vision.hidden_size, read.shuffle) == (448, 1024, 2)
        assert (read.feature_layer, read.feature_width, read.image_token_id) == (24, 4096, 151667)
    else:
        assert (read.vision.image_size, read.vision.patch_size, read.shuffle) == (224, 32, 7)
        assert (read.vision.hidden_size, read.vision.use_head, read.image_token_id) == (1152, False, 128257)


@pytest.mark.parametrize(
    ("family", "published", "here"),
    [
        (
            "internvl",
            "language_model.model.layers.3.mlp.up_proj.weight",
            "language_model.layers.3.mlp.up_proj.weight",
        ),
        ("internvl", "model.language_model.norm.weight", "language_model.norm.weight"),
        ("internvl", "language_model.lm_head.weight", "lm_head.weight"),
        ("internvl", "vision_tower.encoder.layer.0.lambda_1", "vision.tower.encoder.layers.0.lambda_1"),
        ("internvl", "model.vision_tower.embeddings.cls_token", "vision.tower.embeddings.cls_token"),
        ("internvl", "multi_modal_projector.linear_1.bias", "connector.linear_1.bias"),
        ("smolvlm", "model.text_model.embed_tokens.weight", "language_model.embed_tokens.weight"),
        ("smolvlm", "model.vision_model.post_layernorm.bias", "vision.tower.post_layernorm.bias"),
        ("idefics3", "model.connector.modality_projection.proj.weight", "connector.proj.weight"),
        ("idefics3", "lm_head.weight", "lm_head.weight"),
    ],
)
def test_weights_are_found_under_published_names(family: str, published: str, here: str) -> None:
    assert load_family(family).rename_weight(published) == here


@pytest.mark.parametrize("grid", [1, 2, 19, 25, 26, 27, 32, 41])
def test_positions_are_rounded_as_transformers_rounds_them(grid: int) -> None:
    made = Idefics3VisionEmbeddings(Idefics3VisionConfig(hidden_size=1, image_size=grid, patch_size=1))
    with torch.no_grad():
        made.patch_embedding.weight.zero_()
        made.patch_embedding.bias.zero_()
        made.position_embedding.weight.copy_(torch.arange(grid**2, dtype=torch.float32)[:, None])
        mask = torch.ones(1, grid, grid, dtype=torch.bool)
        wanted = made(torch.zeros(1, 3, grid, grid), mask)[0, :, 0]
    assert torch.equal(position_buckets(grid), wanted)


def test_some_positions_are_not_in_raster_order() -> None:
    assert not torch.equal(position_buckets(25), torch.arange(625.0))


def test_pooling_is_the_mean_of_a_tokens_own_patches() -> None:
    shuffle = PixelShuffle(4, 2)
    patches = torch.arange(32.0).reshape(2, 16, 1)
    tokens = shuffle(patches)  # 1 8 4
    assert tokens[0, 1].tolist() == [2, 3, 6, 7]
    assert torch.equal(shuffle.pool(patches[:, :, 0]), tokens.mean(dim=2))
    assert shuffle.tile(2).tolist() == [[0] * 4 + [1] * 4]
