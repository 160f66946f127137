"""Our frequencies against transformers' own, for every scaling type, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from foveate.export.blocks.rope import FREQUENCIES, RopeConfig, inverse_frequencies
from foveate.runtime.errors import CheckpointError

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-mscale": {
        "factor": 16.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "beta_fast": 16,
        "truncate": False,
    },
}


def _text(name: str, theta: float) -> dict[str, Any]:
    rope = {"rope_type": name.partition("-")[0], "rope_theta": theta, **SCALINGS[name]}
    return {
        "hidden_size": 96,
        "num_attention_heads": 3,
        "max_position_embeddings": 512,
        "rope_parameters": rope,
    }


def test_every_type_is_compared() -> None:
    assert {name.partition("-")[0] for name in SCALINGS} == set(FREQUENCIES)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_angles_equal_transformers(name: str, theta: float) -> None:
    text = _text(name, theta)
    oracle = LlamaRotaryEmbedding(LlamaConfig(**text))
    ours, factor = inverse_frequencies(RopeConfig.read(text, head_dim=32, max_positions=512))
    # 2 ulp: llama3's blend is written in another order of operations.
    torch.testing.assert_close(ours, oracle.inv_freq, rtol=2.4e-7, atol=0)
    assert factor == pytest.approx(oracle.attention_scaling, rel=1e-12)


def test_legacy_keys_read_like_current_ones() -> None:
    legacy = {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    current = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0}}
    assert RopeConfig.read(legacy, 32, 512) == RopeConfig.read(current, 32, 512)


def test_unknown_type_lists_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"longrope.*default, linear, dynamic, llama3, yarn"):
        RopeConfig.read({"rope_scaling": {"rope_type": "longrope"}}, 32, 512)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": "two"}, "factor"),
        ({"full_attention": {"rope_type": "default"}}, "all layers"),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "low_freq_factor < high_freq_factor",
        ),
    ],
)
def test_parameters_that_mean_nothing(section: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        RopeConfig.read({"rope_parameters": section}, 32, 512)


def test_missing_key_is_named() -> None:
    with pytest.raises(CheckpointError, match="low_freq_factor"):
        RopeConfig.read({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 32, 512)
