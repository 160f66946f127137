"""Gemma 3: what is refused, weight names, patches to tokens, and who sees whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate.export.blocks.decoder import Neighbourhood, attention_masks
from foveate.export.families import gemma3
from foveate.runtime.errors import CheckpointError

VISION = {"image_size": 70, "patch_size": 7, "hidden_size": 48, "num_attention_heads": 3}
TEXT = {"num_hidden_layers": 3, "sliding_window": 4, "vocab_size": 300}
CONFIG = {"image_token_index": 299, "mm_tokens_per_image": 25, "vision_config": VISION, "text_config": TEXT}


def _config(**changes: Any) -> dict[str, Any]:
    text = {**TEXT, **changes.pop("text", {})}
    return {**CONFIG, "text_config": text, **changes}


def test_reads_what_config_json_leaves_out() -> None:
    config = gemma3.Config.read(_config(eos_token_id=[1, 106]))
    assert (config.side, config.pooling, gemma3.candidates(config)) == (5, 2, 25)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (2, (1, 106), 0)
    assert config.text.windows == (4, 4, 4)  # every sixth layer has none, and there are three
    assert config.text.tied_head
    assert config.text.local_rope is not None
    assert (config.text.rope.theta, config.text.local_rope.theta) == (1e6, 1e4)


def test_only_layers_without_a_window_are_stretched() -> None:
    """As published: one `rope_scaling` for all; `sliding_window_pattern` says which layers have a window."""
    old = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 3}
    text = gemma3.Config.read(_config(text={**old, "rope_local_base_freq": 9e3})).text
    assert text.windows == (4, 4, None)
    assert text.local_rope is not None
    assert (text.rope.rope_type, text.rope.theta, text.rope.get("factor")) == ("linear", 1e6, 8.0)
    assert (text.local_rope.rope_type, text.local_rope.theta) == ("default", 9e3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mm_tokens_per_image": 24}, "mm_tokens_per_image"),
        ({"mm_tokens_per_image": 9}, "mm_tokens_per_image"),
        ({"image_token_index": 300}, "image_token_index"),
        ({"vision_config": {**VISION, "model_type": "clip_vision_model"}}, "clip_vision_model"),
        ({"text": {"attn_logit_softcapping": 50.0}}, "attn_logit_softcapping"),
        ({"text": {"final_logit_softcapping": 30.0}}, "final_logit_softcapping"),
        ({"text": {"use_bidirectional_attention": True}}, "use_bidirectional_attention"),
        ({"text": {"layer_types": ["full_attention", "chunked_attention"]}}, "layer_types"),
        ({"text": {"model_type": "gemma3n_text"}}, "model_type"),
        ({"text": {"rope_parameters": 8}}, "rope_parameters"),
    ],
)
def test_refuses_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        gemma3.Config.read(_config(**changes))


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("language_model.model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.embed_tokens.weight", "language_model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        (
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
            "vision.tower.encoder.layers.0.mlp.fc1.bias",
        ),
        ("model.vision_tower.post_layernorm.weight", "vision.tower.post_layernorm.weight"),
        ("multi_modal_projector.mm_soft_emb_norm.weight", "connector.mm_soft_emb_norm.weight"),
        ("vision_tower.vision_model.head.attention.in_proj_bias", "vision.tower.head.attention.in_proj.bias"),
    ],
)
def test_weight_names_of_all_releases(name: str, renamed: str) -> None:
    assert gemma3.rename_weight(name) == renamed
    assert gemma3.rename_weight(renamed) == renamed


def test_patch_scores_become_the_means_of_their_squares() -> None:
    config = gemma3.Config.read(CONFIG)
    vision = gemma3.Vision(config, (), pooled=False)
    for parameter in vision.parameters():
        parameter.data.fill_(0.01)
    evidence = vision({"pixel_values": torch.zeros(2, 3, 70, 70)})
    scores = torch.arange(200, dtype=torch.float32).reshape(2, 100) ** 1.5
    pooled = evidence.pool(scores)
    assert pooled.shape == (2, 25)
    for image in range(2):
        for row in range(5):
            for column in range(5):
                square = [
                    float(scores[image, (2 * row + i) * 10 + 2 * column + j]) for i in (0, 1) for j in (0, 1)
                ]
                assert float(pooled[image, row * 5 + column]) == pytest.approx(sum(square) / 4)


def test_masks_by_loops() -> None:
    """Two sequences with unlike caches, positions with holes, two images, padding; rubbish behind."""
    position = torch.tensor([[9, 10, 13, 14, 20, 21, 22], [30, 31, 33, 35, 36, 0, 0]])
    block = torch.tensor([[-1, 0, 0, 0, 1, 1, -1], [-1, 0, 0, -1, -1, -1, -1]])
    past = torch.full((2, 16), 10**6)
    past[0, :3] = torch.tensor([2, 5, 8])
    past[1, :6] = torch.tensor([1, 4, 20, 27, 28, 29])
    length, cached = torch.tensor([7, 5]), torch.tensor([3, 6])
    masks = attention_masks(Neighbourhood(position, block, past), length, cached, {None, 5})
    for b in range(2):
        for row in range(int(length[b])):
            for slot in range(16):
                other = slot - int(cached[b])
                inside = 0 <= other < int(length[b])
                earlier = slot < int(cached[b]) or (inside and other <= row)
                together = inside and int(block[b, other]) == int(block[b, row]) >= 0
                there = int(position[b, other]) if inside else int(past[b, slot])
                near = int(position[b, row]) - there < 5
                assert bool(masks[None][b, row, slot]) == (earlier or together), (b, row, slot)
                assert bool(masks[5][b, row, slot]) == ((earlier or together) and near), (b, row, slot)
