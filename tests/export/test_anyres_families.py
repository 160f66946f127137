"""LLaVA-NeXT and LLaVA-OneVision: encoder, connector and evidence against transformers, names, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlavaNextConfig, LlavaOnevisionConfig

from foveate.export.blocks.linear import transposed_weights
from foveate.export.families import find_family, llava_next, llava_onevision
from foveate.runtime.errors import CheckpointError
from foveate.runtime.families import find_preprocessor
from foveate.tools.parity.families import find_oracle

LAYERS = (0, 2)
HEAD = {"vision_options": {"vision_use_head": True}}
# Canvases of an even number of patches: of a very thin picture, nothing is left on them.
EVEN = {"canvases": [[140, 280], [280, 140]]}


def fill(module: nn.Module, prefix: str, state: dict[str, torch.Tensor]) -> None:
    turned = transposed_weights(module)
    given = {name: state[f"{prefix}.{name}"] for name in module.state_dict()}
    module.load_state_dict({name: tensor.T if name in turned else tensor for name, tensor in given.items()})


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("llava_next", {}, [(90, 70), (300, 40), (640, 480), (14, 7)]),
        ("llava_next", {"vision_feature_layer": [-3, -1], **EVEN}, [(40, 300), (1000, 10), (10, 1000)]),
        ("llava_onevision", {}, [(90, 70), (300, 40), (640, 480), (14, 7)]),
        ("llava_onevision", {"vision_feature_layer": [-3, -2], **HEAD}, [(41, 300), (1000, 10)]),
    ],
)
@torch.no_grad()
def test_everything_is_transformers(name: str, options: Any, sizes: Any, tmp_path: Path) -> None:
    checkpoint = tiny.make(name, tmp_path, **options)
    config_json = json.loads((checkpoint / "config.json").read_text())
    _, family = find_family(config_json)
    config, oracle = family.Config.read(config_json), find_oracle(name)(checkpoint)
    pooled = family.encoder_shape(config).has_pool
    vision, connector = family.Vision(config, LAYERS, pooled=pooled), family.Connector(config)
    tensors = load_file(checkpoint / "model.safetensors")
    state = {family.rename_weight(key): tensor for key, tensor in tensors.items()}
    fill(vision, "vision", state)  # type: ignore[arg-type]
    fill(connector, "connector", state)
    preprocessor = find_preprocessor(name)(checkpoint, family.runtime_facts(config), "<image>")
    for size in sizes:
        image = tiny.make_image(3, size)
        content = [{"type": "image"}, {"type": "text", "text": "?"}]
        want = oracle.items(oracle.encode([{"role": "user", "content": content}], [image]).inputs)[0]
        feeds = {key: torch.from_numpy(array) for key, array in preprocessor.image(image).feeds.items()}
        got, facts = vision(feeds), want.facts
        torch.testing.assert_close(connector(got.features[0]), want.projected, atol=1e-4, rtol=0)
        np.testing.assert_allclose(got.patches.numpy(), facts.patches, atol=1e-4)
        for layer in LAYERS:
            np.testing.assert_allclose(got.query[layer].numpy(), facts.query[layer], atol=1e-4)
            np.testing.assert_allclose(got.key[layer].numpy(), facts.key[layer], atol=1e-4)
        for mine, other in ((got.cls, facts.cls), (got.pooled, facts.pooled)):
            assert (mine is None) == (other is None)
            if mine is not None and other is not None:
                np.testing.assert_allclose(mine.numpy(), other, atol=1e-4)
        score = torch.rand(got.patches.shape[:2])
        np.testing.assert_allclose(got.pool(score)[0].numpy(), facts.pool(score.numpy()), atol=1e-6)
        assert np.array_equal(got.tile[0].numpy(), facts.tile)


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("image_newline", "connector.image_newline"),
        ("model.image_newline", "connector.image_newline"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("multi_modal_projector.linear_1.bias", "connector.linear_1.bias"),
        ("vision_tower.vision_model.pre_layrnorm.bias", "vision.tower.pre_layrnorm.bias"),
        ("model.vision_tower.vision_model.pre_layrnorm.bias", "vision.tower.pre_layrnorm.bias"),
    ],
)
def test_names_of_all_releases_of_next(name: str, renamed: str) -> None:
    assert llava_next.rename_weight(name) == renamed


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("image_newline", "vision.image_newline"),
        ("model.image_newline", "vision.image_newline"),
        ("language_model.model.norm.weight", "language_model.norm.weight"),
        ("multi_modal_projector.linear_1.bias", "vision.projector.linear_1.bias"),
        ("model.multi_modal_projector.linear_2.weight", "vision.projector.linear_2.weight"),
        ("vision_tower.vision_model.post_layernorm.bias", "vision.tower.post_layernorm.bias"),
        (
            "model.vision_tower.head.attention.in_proj_weight",
            "vision.tower.head.attention.in_proj.weight",
        ),
    ],
)
def test_names_of_all_releases_of_onevision(name: str, renamed: str) -> None:
    assert llava_onevision.rename_weight(name) == renamed


def test_an_empty_configuration_is_transformers_default() -> None:
    # The default vocabulary has no room for the default image token.
    nxt, theirs = llava_next.Config.read({"text_config": {"vocab_size": 32064}}), LlavaNextConfig()
    assert [list(size) for size in nxt.canvases] == theirs.image_grid_pinpoints
    assert (nxt.vision.hidden_size, nxt.feature_layers) == (theirs.vision_config.hidden_size, (23,))
    one, other = llava_onevision.Config.read({}), LlavaOnevisionConfig()
    assert [list(size) for size in one.canvases] == other.image_grid_pinpoints
    assert (one.image_token_id, one.video_token_id) == (other.image_token_id, other.video_token_id)
    assert (one.vision.num_layers, one.feature_layers, one.limit) == (26, (26,), 9)
    assert one.vision.use_head is other.vision_config.vision_use_head is False
    assert one.text.hidden_size == other.text_config.hidden_size


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        (llava_next, "vision_feature_select_strategy", "full"),
        (llava_next, "vision_config", {"model_type": "siglip_vision_model"}),
        (llava_next, "image_grid_pinpoints", [[336, 500]]),
        (llava_next, "image_grid_pinpoints", [336, 672]),
        (llava_onevision, "vision_feature_select_strategy", "default"),
        (llava_onevision, "vision_config", {"model_type": "clip_vision_model"}),
        (llava_onevision, "image_grid_pinpoints", "(1x1),...,(6x6)"),
        (llava_onevision, "vision_aspect_ratio", "anyres"),
        (llava_onevision, "vision_aspect_ratio", "anyres_max_0"),
        (llava_onevision, "image_token_index", 10**9),
        (llava_onevision, "vision_feature_layer", 99),
    ],
)
def test_what_is_not_supported_is_refused(family: Any, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError):
        family.Config.read({key: value})
