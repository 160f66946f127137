"""python -m foveate.tools.selection_cost at toy sizes: all numbers of a line come from graphs that ran."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.pruning.registry import describe_method
from foveate.pruning.spec import Site
from foveate.runtime.errors import UsageError
from foveate.tools import selection_graphs
from foveate.tools.selection_cost import as_table, cuts_of, measure

TINY: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 90,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "text_config": {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-05,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> selection_graphs.Model:
    monkeypatch.setattr(selection_graphs, "SHAPES", {"tiny": TINY})
    return selection_graphs.read_model("tiny")


def test_a_line_per_method(model: selection_graphs.Model) -> None:
    costs = {cost.method: cost for cost in measure(["divprune", "dart"], 4, 1, model)}
    assert list(costs) == ["divprune", "dart"]
    assert (costs["divprune"].cuts, costs["divprune"].kept) == ((0,), (4,))
    assert costs["divprune"].connector > 0
    assert (costs["dart"].cuts, costs["dart"].kept, costs["dart"].connector) == ((2,), (4,), 0)
    for cost in costs.values():
        assert cost.choosing > 0
        assert cost.prefill > 0
    lines = as_table(list(costs.values())).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_cuts_follow_the_schedule() -> None:
    assert cuts_of(describe_method("sparsevlm"), Site.DECODER, 32) == (3, 7, 16)
    assert cuts_of(describe_method("text-relevance"), Site.DECODER, 32) == (2,)
    assert cuts_of(describe_method("random"), Site.ENCODER, 32) == (0,)


def test_unknown_method(model: selection_graphs.Model) -> None:
    with pytest.raises(UsageError, match="unknown method"):
        measure(["dirt"], 4, 1, model)
