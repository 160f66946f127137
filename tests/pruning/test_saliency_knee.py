"""saliency-knee: three scores that need no CLS, the layers they read, what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.pruning.budget import Budget
from foveate.pruning.evidence import EncoderEvidence, EncoderShape
from foveate.pruning.methods.saliency_knee import Config, Method, pooled, prompt, received
from foveate.pruning.selection import Selection
from foveate.runtime.errors import UsageError
from foveate.tools.parity import oracles

HEADS, WIDTH = 4, 12


def evidence(
    draw: np.random.Generator, t: int, p: int, *, cls: bool = False, dtype: torch.dtype = torch.float32
) -> EncoderEvidence:
    """One item of ``t`` tiles; two patches make a candidate, the mean of their scores."""

    def make(*shape: int) -> Tensor:
        return torch.from_numpy(draw.normal(size=shape)).to(dtype)

    rows, n = p + cls, t * p // 2
    return EncoderEvidence(
        features=make(1, n, 2 * WIDTH),
        patches=make(t, p, WIDTH),
        cls=make(t, WIDTH) if cls else None,
        query={7: make(t, rows, WIDTH) * 2},
        key={7: make(t, rows, WIDTH)},
        num_heads=HEADS,
        pool=lambda score: score.reshape(1, n, 2).mean(dim=2),
        tile=torch.arange(t).repeat_interleave(p // 2)[None],
        pooled=torch.from_numpy(draw.dirichlet(np.full(p, 0.4), size=t)).to(dtype),
        prompt=make(1, 10),
        projected=make(1, n, 10),
    )


def choose(given: EncoderEvidence, tokens: int = 0, **options: Any) -> Selection:
    budget = Budget(torch.zeros(1), torch.full((1,), tokens))
    selection: Selection = Method(Config(**options))(given, budget, None)
    return selection


def oracle_scores(score: str, given: EncoderEvidence) -> list[float]:
    if score == "prompt":
        assert given.projected is not None
        assert given.prompt is not None
        return oracles.prompt_scores(given.projected[0].double(), given.prompt[0].double())
    if score == "pooled":
        assert given.pooled is not None
        tiles = given.pooled.double().tolist()
    else:
        skip = int(given.cls is not None)
        tiles = [
            oracles.received_scores(query.double(), key.double(), HEADS, skip)
            for query, key in zip(given.query[7], given.key[7], strict=True)
        ]
    return [(row[i] + row[i + 1]) / 2 for row in tiles for i in range(0, len(row), 2)]


@pytest.mark.parametrize("score", ["received", "pooled", "prompt"])
@pytest.mark.parametrize("knee", ["chord", "cumulative", "recursive", "derivative", "iqr"])
@pytest.mark.parametrize("spread", ["image", "tile"])
def test_equal_to_the_oracle(score: str, knee: str, spread: str) -> None:
    draw = np.random.default_rng(len(score + knee + spread))
    options: dict[str, Any] = {"score": score, "knee": knee, "spread": spread, "min_keep": 2}
    for t, p in ((1, 4), (1, 30), (3, 8), (2, 40), (7, 4)):
        for cls in (False, True):
            for tokens in (0, 5):
                given = evidence(draw, t, p, cls=cls)
                order, count, graded, _ = choose(given, tokens, **options)
                assert graded is not None
                scores = oracle_scores(score, given)
                np.testing.assert_allclose(graded[0], scores, rtol=1e-5, atol=1e-7)
                wanted = oracles.encoder_order(
                    scores, options, tile=given.tile[0].tolist(), keep_tokens=tokens
                )
                assert (order[0].tolist(), int(count[0])) == wanted


@pytest.mark.parametrize("cls", [False, True])
def test_received_is_the_mean_of_the_true_attention(cls: bool) -> None:
    given = evidence(np.random.default_rng(0), 3, 10, cls=cls)
    query, key = (
        each[7].reshape(3, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for each in (given.query, given.key)
    )
    attention = torch.softmax(query @ key.transpose(2, 3) / (WIDTH / HEADS) ** 0.5, dim=-1)
    wanted = attention.mean(dim=(1, 2))[:, int(cls) :]
    torch.testing.assert_close(received(given), given.pool(wanted))
    if not cls:  # all the attention there is goes to patches
        torch.testing.assert_close(received(given).sum(), torch.tensor(1.5))


def test_pooled_and_prompt() -> None:
    given = evidence(np.random.default_rng(1), 2, 6)
    assert given.pooled is not None
    assert given.projected is not None
    assert given.prompt is not None
    torch.testing.assert_close(pooled(given), given.pool(given.pooled))
    torch.testing.assert_close(
        prompt(given), torch.cosine_similarity(given.projected, given.prompt[:, None], dim=-1)
    )


def test_a_prompt_without_words_keeps_everything() -> None:
    """Its mean embedding is zero, every cosine is 0, and a flat curve has no knee."""
    given = evidence(np.random.default_rng(2), 2, 50)
    assert given.prompt is not None
    silent = given._replace(prompt=torch.zeros_like(given.prompt))
    assert int(choose(silent, score="prompt", min_keep=1).count) == 50
    assert choose(silent, 3, score="prompt").order[0, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("score", ["received", "pooled", "prompt"])
def test_half_precision_evidence_is_scored_in_float32(dtype: torch.dtype, score: str) -> None:
    given = evidence(np.random.default_rng(3), 2, 24, dtype=dtype)
    assert given.projected is not None
    assert given.prompt is not None
    assert given.pooled is not None
    half = given._replace(projected=given.projected * 200, prompt=given.prompt * 200)
    half.query[7].mul_(50)
    half.key[7].mul_(50)
    assert half.projected is not None
    assert half.prompt is not None
    full = half._replace(
        query={7: half.query[7].float()},
        key={7: half.key[7].float()},
        pooled=given.pooled.float(),
        projected=half.projected.float(),
        prompt=half.prompt.float(),
    )
    low, high = choose(half, score=score), choose(full, score=score)
    assert torch.equal(low.order, high.order)
    assert torch.equal(low.count, high.count)
    assert low.score is not None
    assert low.score.dtype == torch.float32


def shape(
    num_layers: int, feature_layer: int, whole: tuple[int, ...], *, has_pool: bool = False
) -> EncoderShape:
    return EncoderShape(num_layers, feature_layer, whole, has_cls=False, has_pool=has_pool)


@pytest.mark.parametrize(
    ("options", "encoder", "wanted"),
    [
        ({}, shape(27, 27, tuple(range(27))), (26,)),  # SigLIP, final output
        ({}, shape(24, 23, tuple(range(24))), (22,)),  # LLaVA-1.5: the layer that writes the features
        ({}, shape(32, 32, (7, 15, 23, 31)), (31,)),  # Qwen2.5-VL
        ({}, shape(32, 31, (7, 15, 23, 31)), (23,)),
        ({}, shape(32, 7, (7, 15)), (7,)),  # nothing is written below the features
        ({}, shape(4, 0, (0, 1, 2, 3)), (0,)),
        ({"layer": 15}, shape(32, 32, (7, 15, 23, 31)), (15,)),
        ({"layer": 31}, shape(32, 31, (7, 15, 23, 31)), (31,)),
        ({"score": "prompt"}, shape(32, 32, ()), ()),
        ({"score": "pooled"}, shape(27, 27, tuple(range(27)), has_pool=True), ()),
    ],
)
def test_layers(options: dict[str, Any], encoder: EncoderShape, wanted: tuple[int, ...]) -> None:
    assert Method(Config(**options)).layers(encoder) == wanted


def test_window_layers_are_refused() -> None:
    for layer in (8, 32):
        with pytest.raises(UsageError, match="sees the whole tile") as caught:
            Method(Config(layer=layer)).layers(shape(32, 32, (7, 15, 23, 31)))
        assert caught.value.found == f"layer {layer} of 32"
        assert caught.value.wanted == "one of 7, 15, 23, 31"
    with pytest.raises(UsageError, match="sees the whole tile") as caught:
        Method(Config()).layers(shape(32, 32, ()))
    assert caught.value.mend == "Use score=prompt."


def test_pooled_without_a_head_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="no attention-pooling head") as caught:
        Method(Config(score="pooled")).layers(shape(27, 27, tuple(range(27))))
    assert caught.value.mend == "Use score=received or score=prompt."


def test_what_is_asked_for() -> None:
    needs = {
        score: (method.needs_pooled, method.needs_prompt)
        for score in ("received", "pooled", "prompt")
        for method in [Method(Config(score=score))]
    }
    assert needs == {"received": (False, False), "pooled": (True, False), "prompt": (False, True)}


def test_with_cls_the_row_looks_but_is_no_candidate() -> None:
    given = evidence(np.random.default_rng(4), 1, 8, cls=True)
    changed = given._replace(query={7: given.query[7].clone()})
    changed.query[7][:, 0] += 3
    assert not torch.equal(received(given), received(changed))
    assert received(given).shape == (1, 4)
