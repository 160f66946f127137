"""ViP-LLaVA: features against transformers, which keys of its configuration count, names of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny.vipllava import early_name
from torch import nn
from transformers import AutoModelForImageTextToText, VipLlavaConfig

from foveate.export.blocks.linear import transposed_weights
from foveate.export.families import find_family, vipllava
from foveate.runtime.errors import CheckpointError
from foveate.runtime.families import find_preprocessor
from foveate.runtime.families.vipllava import Preprocessor

# The default vocabulary has no room for the default image token.
ROOM = {"text_config": {"vocab_size": 32064}}


def fill(module: nn.Module, prefix: str, state: dict[str, torch.Tensor]) -> None:
    turned = transposed_weights(module)
    given = {name: state[f"{prefix}.{name}"] for name in module.state_dict()}
    module.load_state_dict({name: tensor.T if name in turned else tensor for name, tensor in given.items()})


@pytest.mark.parametrize(
    ("options", "deepest"),
    [
        ({}, 4),
        ({"early": True, "vision_feature_layer": [2, -1, 0]}, 5),
        ({"vision_feature_layer": -3, "projector_layernorm_eps": 0.5}, 3),
        ({"vision_feature_layer": [3, 3]}, 3),
    ],
)
@torch.no_grad()
def test_features_are_transformers(options: dict[str, Any], deepest: int, tmp_path: Path) -> None:
    checkpoint = tiny.make("vipllava", tmp_path, **options)
    config_json = json.loads((checkpoint / "config.json").read_text())
    name, family = find_family(config_json)
    config = family.Config.read(config_json)
    shape = family.encoder_shape(config)
    assert (name, shape.num_layers, shape.feature_layer) == ("vipllava", 5, deepest)
    vision, connector = family.Vision(config, (deepest - 1,), pooled=False), family.Connector(config)
    tensors = load_file(checkpoint / "model.safetensors")
    state = {family.rename_weight(key): tensor for key, tensor in tensors.items()}
    fill(vision, "vision", state)  # type: ignore[arg-type]
    fill(connector, "connector", state)

    preprocessor = find_preprocessor(name)(checkpoint, family.runtime_facts(config), "<image>")
    feeds = [preprocessor.image(tiny.make_image(seed)).feeds["pixel_values"] for seed in (3, 4)]
    pixels = torch.from_numpy(np.concatenate(feeds))
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    got, wanted = vision({"pixel_values": pixels}), model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(connector(got.features), wanted, atol=1e-5, rtol=1e-5)
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[deepest]
    torch.testing.assert_close(got.patches, hidden[:, 1:], atol=1e-5, rtol=1e-5)
    assert got.cls is not None
    torch.testing.assert_close(got.cls, hidden[:, 0], atol=1e-5, rtol=1e-5)
    assert got.leading is None
    assert family.candidates(config) == wanted.shape[1] == 25


def test_an_empty_configuration_is_transformers_default() -> None:
    ours, theirs = vipllava.Config.read(ROOM), VipLlavaConfig()
    assert ours.feature_layers == tuple(i % 25 for i in theirs.vision_feature_layer) == (23, 20, 17, 14, 6)
    assert (ours.scored_layer, ours.feature_width) == (23, 5 * 1024)
    assert ours.projector_norm_eps == theirs.projector_layernorm_eps
    assert ours.image_token_id == theirs.image_token_index
    assert ours.projector_activation == theirs.projector_hidden_act


@pytest.mark.parametrize(
    "given",
    [
        {"vision_feature_layer": [-3, 5]},
        {"vision_feature_layers": [-3, 5]},
        {"vision_feature_layers": [-3, 5], "vision_feature_layer": -2},
        {"vision_feature_layer": -2, "vision_feature_layers": [-3, 5]},
        {"vision_feature_layers": 0},
    ],
)
def test_which_layers_are_read(given: dict[str, Any]) -> None:
    theirs = VipLlavaConfig.from_dict(given).vision_feature_layer
    every = [theirs] if isinstance(theirs, int) else theirs
    assert vipllava.Config.read(ROOM | given).feature_layers == tuple(i % 25 for i in every)


def test_keys_that_transformers_does_not_read() -> None:
    """LLaVA has a choice here, ViP-LLaVA has none."""
    given = {"vision_feature_select_strategy": "full", "multimodal_projector_bias": False}
    assert vipllava.Config.read(ROOM | given) == vipllava.Config.read(ROOM)
    assert not vipllava.Config.read(ROOM | given).keep_cls


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_feature_layers", [1, 99]),
        ("vision_feature_layer", -26),
        ("vision_feature_layer", [True]),
        ("projector_layernorm_eps", 0),
        ("projector_layernorm_eps", "small"),
        ("image_token_index", 32064),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.{key} "):
        vipllava.Config.read(ROOM | {key: value})


def test_other_towers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="vision tower"):
        vipllava.Config.read(ROOM | {"vision_config": {"model_type": "siglip_vision_model"}})


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("multi_modal_projector.projector_layernorm.bias", "connector.projector_layernorm.bias"),
        ("language_model.model.norm.weight", "language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.pre_layrnorm.bias", "vision.tower.pre_layrnorm.bias"),
    ],
)
def test_names_of_the_first_release(name: str, renamed: str) -> None:
    assert vipllava.rename_weight(name) == renamed


def test_the_tiny_checkpoint_writes_those_names(tmp_path: Path) -> None:
    now = load_file(tiny.make("vipllava", tmp_path / "now") / "model.safetensors")
    early = load_file(tiny.make("vipllava", tmp_path / "early", early=True) / "model.safetensors")
    assert set(early) == {early_name(name) for name in now}
    assert {"language_model.lm_head.weight", "language_model.model.norm.weight"} <= set(early)
    assert {vipllava.rename_weight(name) for name in early} == {vipllava.rename_weight(name) for name in now}


def test_pictures_are_llavas() -> None:
    assert find_preprocessor("vipllava") is Preprocessor
    facts = vipllava.runtime_facts(vipllava.Config.read(ROOM))
    assert facts == {"image_size": 336, "patch_size": 14, "keep_cls": False}
