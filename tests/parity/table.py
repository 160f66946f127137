"""The parity table: which models, methods and layouts climb the whole ladder.

To add a row: name what is new about it, and choose the smallest model that shows it. `test_table.py` climbs
every row, and fails when a method, a knee, a text model or a RoPE type stands in no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

BOTH = ("fused", "segmented")


@dataclass(frozen=True)
class Row:
    """One checkpoint and one export of it. `checkpoint` are options of `tiny.make_llava`."""

    name: str
    plan: tuple[str, ...]
    layouts: tuple[str, ...] = ("fused",)
    positions: str = "compact"
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    cases: tuple[str, ...] = ("image in the middle", "two images", "text only")


def model(text: str = "llama", layers: int = 3, **options: Any) -> dict[str, Any]:
    """Options of a tiny checkpoint: `vision_*` and `text_*` go to the two halves, the rest to LLaVA."""
    halves: dict[str, dict[str, Any]] = {
        "vision_": {"num_hidden_layers": 3},
        "text_": {"num_hidden_layers": layers},
    }
    own: dict[str, Any] = {"text": text}
    for name, value in options.items():
        half = next(
            (prefix for prefix in halves if name.startswith(prefix) and name != "vision_feature_layer"), ""
        )
        if half and not name.startswith("vision_feature"):
            halves[half][name.removeprefix(half)] = value
        else:
            own[name] = value
    return own | {"vision_options": halves["vision_"], "text_options": halves["text_"]}


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """A RoPE section of a text configuration."""
    return {"rope_type": kind, "rope_theta": 5000.0, **parameters}


DEFAULT = Row(
    "default: llama, grouped queries, the main method at both sites",
    ("cls-knee:min_keep=3", "text-relevance@2"),
    BOTH,
    checkpoint={},
    cases=(),
)

ROWS = (
    DEFAULT,
    Row(
        "mistral, tied head, bfloat16 shards, linear RoPE, original positions, safe profile",
        ("cls-knee:score=cls_mean,knee=cumulative,min_keep=2", "text-relevance@1:profile=safe,ratio=0.4"),
        positions="original",
        checkpoint=model(
            "mistral",
            dtype=torch.bfloat16,
            shard_size="200KB",
            seed=1,
            tie_word_embeddings=True,
            text_rope_parameters=rope("linear", factor=2.0),
        ),
    ),
    Row(
        "qwen2, projection biases, YaRN, two decoder cuts, knee in the decoder",
        (
            "cls-knee:score=cosine,knee=iqr,min_keep=2,max_keep=20",
            "text-relevance@1:ratio=0.6",
            "text-relevance@2:rule=knee,knee=chord",
        ),
        BOTH,
        checkpoint=model(
            "qwen2",
            seed=2,
            text_rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=128),
        ),
    ),
    Row(
        "random at both sites, llama3 RoPE, float16 file",
        ("random:ratio=0.4,seed=5", "random@1:ratio=0.5"),
        ("segmented",),
        checkpoint=model(
            dtype=torch.float16,
            seed=3,
            text_rope_parameters=rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    Row(
        "several feature layers, CLS among the features, dynamic RoPE, scores without RoPE",
        ("cls-knee:knee=recursive,min_keep=2,round_to=4", "text-relevance@2:query=last,rope_free=true"),
        checkpoint=model(
            seed=4,
            vision_feature_layer=[-3, -2],
            vision_feature_select_strategy="full",
            text_rope_parameters=rope("dynamic", factor=2.0),
        ),
    ),
    Row(
        "last feature layer, every row asks, one head per group, biases",
        ("cls-knee:knee=derivative,smooth=5,skip=2,min_keep=2,knee_scale=1.5", "text-relevance@1:query=all"),
        ("segmented",),
        checkpoint=model(
            seed=5,
            vision_feature_layer=-1,
            text_num_key_value_heads=6,
            text_attention_bias=True,
            text_mlp_bias=True,
        ),
    ),
    Row(
        "unpruned, one key-value head, other activations",
        ("none",),
        checkpoint=model(
            seed=6,
            projector_hidden_act="gelu_pytorch_tanh",
            text_num_key_value_heads=1,
            vision_hidden_act="gelu",
        ),
    ),
)
