"""The Qwen-VL families' configurations and names of weights, as published and as of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from foveate.export.families import load_family
from foveate.runtime.errors import CheckpointError

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GRAPH_NAMES = {
    "visual.blocks.3.attn.qkv.weight": "vision.encoder.layers.3.attn.qkv.weight",
    "visual.patch_embed.proj.bias": "vision.encoder.patch_embed.bias",
    "visual.pos_embed.weight": "vision.encoder.pos_embed.weight",
    "visual.blocks.0.mlp.linear_fc2.bias": "vision.encoder.layers.0.mlp.fc2.bias",
    "visual.merger.mlp.2.weight": "connector.mlp.2.weight",
    "visual.merger.linear_fc1.weight": "connector.linear_fc1.weight",
    "visual.deepstack_merger_list.1.norm.weight": "connector.deepstack.1.norm.weight",
    "model.layers.11.self_attn.q_proj.bias": "language_model.layers.11.self_attn.q_proj.bias",
    "model.embed_tokens.weight": "language_model.embed_tokens.weight",
    "model.norm.weight": "language_model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_known_by_all_their_names(family: str) -> None:
    rename = load_family(family).rename_weight
    for published, name in GRAPH_NAMES.items():
        assert rename(published) == name
        today = published.replace("model.", "model.language_model.")
        assert rename(f"model.{today}" if today.startswith("visual.") else today) == name


def config_of(family: str, path: Path, **options: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((tiny.make(family, path, **options) / "config.json").read_text())
    return made


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_flat_configurations_are_read_alike(family: str, tmp_path: Path) -> None:
    read = load_family(family).Config.read
    flat = config_of(family, tmp_path / "flat", flat=True, tie_word_embeddings=True)
    assert "text_config" not in flat
    assert read(flat) == read(config_of(family, tmp_path / "nested", tie_word_embeddings=True))
    assert read(flat).text.tied_head


@pytest.mark.parametrize(
    ("family", "section", "changes", "named"),
    [
        ("qwen2_vl", "vision_config", {"hidden_size": 32}, "vision_config.hidden_size"),
        ("qwen2_vl", "vision_config", {"in_channels": 1}, "in_channels"),
        ("qwen2_vl", "vision_config", {"num_heads": 5}, "num_heads"),
        ("qwen2_vl", "vision_config", {"patch_size": [14, 14]}, "patch_size"),
        ("qwen2_vl", "text_config", {"rope_parameters": {"mrope_section": [2, 3]}}, "mrope_section"),
        ("qwen2_vl", None, {"video_token_id": 100000}, "video_token_id"),
        ("qwen2_5_vl", "vision_config", {"window_size": 14}, "window_size"),
        ("qwen2_5_vl", "vision_config", {"fullatt_block_indexes": [1, 9]}, "fullatt_block_indexes"),
        ("qwen2_5_vl", "vision_config", {"tokens_per_second": 0}, "tokens_per_second"),
        ("qwen3_vl", "vision_config", {"num_position_embeddings": 35}, "num_position_embeddings"),
        ("qwen3_vl", "vision_config", {"deepstack_visual_indexes": [2, 0]}, "deepstack_visual_indexes"),
        ("qwen3_vl", "text_config", {"num_hidden_layers": 1}, "deepstack_visual_indexes"),
    ],
)
def test_what_does_not_fit_is_named(
    family: str, section: str | None, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    config = config_of(family, tmp_path / "made")
    (config if section is None else config[section]).update(changes)
    with pytest.raises(CheckpointError, match=named):
        load_family(family).Config.read(config)
