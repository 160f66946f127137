"""cls-knee: the scores of three papers, the layers they read, the cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.pruning.budget import Budget
from foveate.pruning.evidence import EncoderEvidence, EncoderShape
from foveate.pruning.methods.cls_knee import Config, Method, cls_full, cls_mean, cosine
from foveate.pruning.selection import Selection
from foveate.runtime.errors import UsageError
from foveate.tools.parity import oracles


def evidence(
    draw: np.random.Generator, b: int, n: int, layers: int = 1, dtype: Any = None
) -> EncoderEvidence:
    def make(*shape: int) -> Tensor:
        return torch.from_numpy(draw.normal(size=shape)).to(dtype or torch.float32)

    c = 12
    query = {3 + layer: make(b, n + 1, c) * 2 for layer in range(layers)}
    key = {3 + layer: make(b, n + 1, c) for layer in range(layers)}
    return whole(make(b, n, c), make(b, c), query, key, 4)


def whole(
    patches: Tensor, cls: Tensor, query: dict[int, Tensor], key: dict[int, Tensor], heads: int
) -> EncoderEvidence:
    """Items of one tile, each patch a candidate."""
    return EncoderEvidence(
        features=patches,
        patches=patches,
        cls=cls,
        query=query,
        key=key,
        num_heads=heads,
        pool=lambda score: score,
        tile=torch.zeros(patches.shape[:2], dtype=torch.int64),
    )


def shape(num_layers: int, feature_layer: int) -> EncoderShape:
    return EncoderShape(num_layers, feature_layer, tuple(range(num_layers)), has_cls=True)


def choose(given: EncoderEvidence, ratio: float = 0.0, tokens: int = 0, **options: Any) -> Selection:
    b = given.features.shape[0]
    budget = Budget(torch.full((b,), ratio), torch.full((b,), tokens))
    selection: Selection = Method(Config(**options))(given, budget, None)
    return selection


@pytest.mark.parametrize("score", ["cls_full", "cls_mean", "cosine"])
@pytest.mark.parametrize("knee", ["chord", "cumulative", "recursive", "derivative", "iqr"])
def test_equal_to_the_oracle(score: str, knee: str) -> None:
    draw = np.random.default_rng(4)
    options: dict[str, Any] = {"score": score, "knee": knee, "min_keep": 2}
    for n in (1, 2, 9, 30, 64):
        given = evidence(draw, 3, n, layers=3 if score == "cls_mean" else 1)
        order, count, graded, _ = choose(given, **options)
        assert graded is not None
        for b in range(3):
            scores = oracles.encoder_scores(
                score,
                features=given.patches[b],
                cls=given.cls[b] if given.cls is not None else (),
                query={layer: each[b] for layer, each in given.query.items()},
                key={layer: each[b] for layer, each in given.key.items()},
                num_heads=4,
            )
            assert oracles.Choice(order[b].tolist(), int(count[b])) == oracles.encoder_order(scores, options)
            np.testing.assert_allclose(graded[b], scores, rtol=1e-5, atol=1e-7)


def test_cls_full_is_attention_of_one_wide_head() -> None:
    """PruMerge's score: softmax(Q K^T / sqrt(c)) with all the heads in one, first row, CLS column dropped."""
    given = evidence(np.random.default_rng(0), 2, 10)
    query, key = given.query[3], given.key[3]
    wanted = torch.softmax(query @ key.transpose(1, 2) / 12**0.5, dim=-1)
    score, logarithm = cls_full(given)
    torch.testing.assert_close(score, wanted[:, 0, 1:])
    assert (score.sum(-1) < 1).all()
    torch.testing.assert_close(logarithm.exp(), score)


def test_cls_mean_is_the_true_attention() -> None:
    """VTC-CLS's score: mean over heads, summed over layers, first row, CLS column dropped."""
    given = evidence(np.random.default_rng(1), 2, 10, layers=3)
    total = torch.zeros(2, 10)
    for layer in given.query:
        query, key = (x[layer].reshape(2, 11, 4, 3).transpose(1, 2) for x in (given.query, given.key))
        total += torch.softmax(query @ key.transpose(2, 3) / 3**0.5, dim=-1).mean(1)[:, 0, 1:]
    torch.testing.assert_close(cls_mean(given), total)


def test_cosine() -> None:
    given = evidence(np.random.default_rng(2), 2, 10)
    assert given.cls is not None
    wanted = torch.nn.functional.cosine_similarity(given.patches, given.cls[:, None], dim=-1)
    torch.testing.assert_close(cosine(given), wanted)
    zero = given._replace(patches=torch.zeros_like(given.patches))
    assert cosine(zero).tolist() == [[0.0] * 10] * 2


def test_cls_full_ranks_where_probabilities_underflow() -> None:
    key = torch.zeros(1, 6, 1)
    key[0, :, 0] = torch.tensor([500.0, 1.0, 3.0, 2.0, 250.0, 4.0])
    given = whole(torch.zeros(1, 5, 1), torch.zeros(1, 1), {0: torch.ones(1, 6, 1)}, {0: key}, 1)
    assert cls_full(given)[0].tolist() == [[0.0] * 5]
    assert choose(given, tokens=3).order.tolist() == [[1, 3, 4, 0, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("score", ["cls_full", "cls_mean", "cosine"])
def test_half_precision_evidence_is_scored_in_float32(dtype: torch.dtype, score: str) -> None:
    given = evidence(np.random.default_rng(3), 2, 24, dtype=dtype)
    # Rows whose products leave float16's range: they would be infinite, all alike, without the cast.
    assert given.cls is not None
    given = given._replace(patches=given.patches * 200, cls=given.cls * 200)
    given.query[3].mul_(100)
    given.key[3].mul_(100)
    assert given.cls is not None
    full = whole(
        given.patches.float(),
        given.cls.float(),
        {layer: each.float() for layer, each in given.query.items()},
        {layer: each.float() for layer, each in given.key.items()},
        4,
    )
    half, single = choose(given, score=score), choose(full, score=score)
    assert torch.equal(half.order, single.order)
    assert torch.equal(half.count, single.count)
    assert half.score is not None
    assert half.score.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "num_layers", "feature_layer", "wanted"),
    [
        ({}, 24, 23, (23,)),  # LLaVA-1.5: features are layer 22's output, layer 23 reads them
        ({}, 24, 24, (23,)),  # the final output: nobody reads it, so the last layer
        ({}, 24, 12, (12,)),
        ({}, 24, 0, (0,)),
        ({"layer": 5}, 24, 23, (5,)),
        ({"score": "cls_mean"}, 24, 23, (20, 21, 22)),  # VTC-CLS
        ({"score": "cls_mean"}, 24, 24, (21, 22, 23)),
        ({"score": "cls_mean"}, 3, 2, (0, 1)),  # fewer than three
        ({"score": "cls_mean"}, 2, 0, (0,)),
        ({"score": "cls_mean", "layers": (7, 3, 7)}, 24, 23, (3, 7)),
        ({"score": "cosine"}, 24, 23, ()),
    ],
)
def test_layers(
    options: dict[str, Any], num_layers: int, feature_layer: int, wanted: tuple[int, ...]
) -> None:
    assert Method(Config(**options)).layers(shape(num_layers, feature_layer)) == wanted


@pytest.mark.parametrize("options", [{"layer": 24}, {"score": "cls_mean", "layers": (2, 30)}])
def test_layers_that_do_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="asks for encoder layer") as caught:
        Method(Config(**options)).layers(shape(24, 23))
    assert caught.value.wanted == "0 to 23"


@pytest.mark.parametrize("score", ["cls_full", "cls_mean", "cosine"])
def test_an_encoder_without_cls_is_refused(score: str) -> None:
    bare = shape(24, 23)._replace(has_cls=False)
    for has_pool, scores in ((False, "score=received or prompt"), (True, "score=received, pooled or prompt")):
        with pytest.raises(UsageError, match="has none") as caught:
            Method(Config(score=score)).layers(bare._replace(has_pool=has_pool))
        assert caught.value.mend is not None
        assert f"saliency-knee, with {scores}" in caught.value.mend


def test_each_tile_has_its_own_cls_row() -> None:
    """Two tiles of one item: probabilities of each tile, side by side, then one curve over both."""
    pair = evidence(np.random.default_rng(5), 2, 12)
    one = pair._replace(
        features=pair.features.reshape(1, 24, -1),
        pool=lambda score: score.reshape(1, 24),
        tile=torch.arange(24).reshape(1, 24) // 12,
    )
    score, _ = cls_full(pair)
    chosen = choose(one, tokens=9)
    assert chosen.score is not None
    assert torch.equal(chosen.score, score.reshape(1, 24))
    assert chosen.order[0, :9].tolist() == score.reshape(-1).topk(9).indices.sort().values.tolist()


def test_limits_and_budgets() -> None:
    given = evidence(np.random.default_rng(7), 2, 100)
    knee = choose(given, min_keep=1).count
    assert (knee < 60).all()
    assert choose(given, min_keep=60).count.tolist() == [60, 60]
    assert choose(given, min_keep=1, max_keep=3).count.tolist() == [3, 3]
    assert choose(given, min_keep=60, ratio=0.1).count.tolist() == [10, 10]
    assert choose(given, min_keep=60, tokens=7).count.tolist() == [7, 7]
    assert choose(given, ratio=1.0).order.tolist() == [list(range(100))] * 2


def test_the_default_keeps_at_least_sixteen_or_all() -> None:
    for n in (1, 5, 16, 17, 300):
        assert choose(evidence(np.random.default_rng(n), 1, n)).count.item() >= min(16, n)


def test_the_most_similar_patches_stay() -> None:
    given = evidence(np.random.default_rng(8), 1, 30)
    order, count, *_ = choose(given, tokens=5)
    best = cls_full(given)[0][0].topk(5).indices.sort().values
    assert order[0, : count[0]].tolist() == best.tolist()
