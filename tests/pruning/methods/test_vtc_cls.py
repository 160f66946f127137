"""vtc-cls: equal to its oracle, the ensemble of layers, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from twins import ENCODER_KINDS, compare_encoder, encoder_evidence, model_shape

from foveate.pruning.budget import Budget as Asked
from foveate.pruning.methods.vtc_cls import Config, Method
from foveate.runtime.errors import UsageError
from foveate.tools.parity.facts import Budget

BUDGETS = [Budget(), Budget(keep_tokens=1), Budget(keep_ratio=0.3), Budget(keep_tokens=99)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"depth": 1, "ratio": 0.6},
    {"layers": [0, 3], "spread": "tile"},
    {"depth": 9, "ratio": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equal_to_the_oracle(options: dict[str, Any]) -> None:
    compared = 0
    for kind in ("random", "sharp", "clusters"):
        for seed, grid in enumerate([(1, 1), (1, 2), (3, 3), (4, 5), (7, 6)] * 3):
            evidence = encoder_evidence(seed, b=4, grid=grid, kind=kind)
            compared += compare_encoder("vtc-cls", options, evidence, BUDGETS, grid=grid)
    assert compared > 150


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_ties_keep_the_lower_index(kind: str) -> None:
    for seed in range(4):
        evidence = encoder_evidence(seed, b=4, kind=kind)
        assert compare_encoder("vtc-cls", {}, evidence, BUDGETS, even_ties=True) == 4


def test_the_published_numbers_of_tokens() -> None:
    """Without a budget 128 of 576 stay."""
    evidence = encoder_evidence(0, b=1, grid=(24, 24))
    method = Method(Config())
    layers = method.layers(model_shape((24, 24)).encoder)
    assert layers == (0, 1, 2)
    given = evidence._replace(query={0: evidence.query[0]}, key={0: evidence.key[0]})
    chosen = method(given, Asked(torch.zeros(1), torch.zeros(1, dtype=torch.int64)))
    assert chosen.count.tolist() == [128]


def test_the_ensemble_ends_with_the_layer_that_writes_the_features() -> None:
    shape = model_shape().encoder._replace(num_layers=24, feature_layer=23)
    assert Method(Config()).layers(shape) == (20, 21, 22)
    assert Method(Config(depth=7)).layers(shape) == (16, 17, 18, 19, 20, 21, 22)
    assert Method(Config(layers=(23, 4, 4))).layers(shape) == (4, 23)
    assert Method(Config()).layers(shape._replace(feature_layer=0)) == (0,)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="none"):
        Method(Config()).layers(model_shape(cls=False).encoder)
    with pytest.raises(UsageError, match="asks for encoder layer 9"):
        Method(Config(layers=(1, 9))).layers(model_shape().encoder)
    with pytest.raises(UsageError, match="only with layers=None"):
        Config(depth=2, layers=(1,))


def test_the_score_is_the_mean_of_the_true_attention() -> None:
    evidence = encoder_evidence(3, b=2)
    given = evidence._replace(query={2: evidence.query[2]}, key={2: evidence.key[2]})
    heads = [each[2].reshape(2, -1, 2, 8).transpose(1, 2) for each in (given.query, given.key)]
    attention = torch.softmax(heads[0] @ heads[1].transpose(2, 3) / 8**0.5, dim=-1)
    score = Method(Config())(given, Asked(torch.zeros(2), torch.zeros(2, dtype=torch.int64))).score
    assert score is not None
    np.testing.assert_allclose(score, attention.mean(dim=1)[:, 0, 1:], rtol=1e-5)
