"""Cutting a curve of candidate scores, and giving each tile its share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.pruning.budget import Budget
from foveate.pruning.curve import cosine_similarity, cut_curve, share_tiles
from foveate.pruning.selection import sort_scores
from foveate.pruning.spec import CurveConfig
from foveate.tools.parity import oracles


@st.composite
def items(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores ``[b, n]`` with many ties, and the tile of each candidate, in any order, with gaps."""
    b, n = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    levels = draw(st.integers(0, 30))
    scores = [draw(st.lists(st.integers(0, levels), min_size=n, max_size=n)) for _ in range(b)]
    names = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6))
    tiles = [draw(st.lists(st.sampled_from(names), min_size=n, max_size=n)) for _ in range(b)]
    return torch.tensor(scores, dtype=torch.float32) / 10, torch.tensor(tiles)


@settings(max_examples=300, deadline=None)
@given(
    item=items(),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
    tokens=st.sampled_from([0, 0, 1, 7]),
    spread=st.sampled_from(["image", "tile"]),
    knee=st.sampled_from(["chord", "cumulative", "iqr"]),
)
def test_equal_to_the_oracle(
    item: tuple[Tensor, Tensor], ratio: float, tokens: int, spread: str, knee: str
) -> None:
    score, tile = item
    b = score.shape[0]
    options: dict[str, object] = {"spread": spread, "knee": knee, "min_keep": 2}
    budget = Budget(torch.full((b,), ratio), torch.full((b,), tokens))
    chosen = cut_curve(score, tile, budget, CurveConfig.from_dict(options))
    assert chosen.score is score
    for i in range(b):
        wanted = oracles.encoder_order(
            score[i].tolist(), options, tile=tile[i].tolist(), keep_ratio=ratio, keep_tokens=tokens
        )
        assert (chosen.order[i].tolist(), int(chosen.count[i])) == wanted


@settings(max_examples=100, deadline=None)
@given(item=items())
def test_every_head_takes_even_shares(item: tuple[Tensor, Tensor]) -> None:
    score, tile = item
    n = score.shape[1]
    ranking = share_tiles(sort_scores(score)[1], tile)
    for names, order in zip(tile.tolist(), ranking.tolist(), strict=True):
        assert sorted(order) == list(range(n))
        sizes = np.bincount(names, minlength=n)
        for k in range(n + 1):
            kept = np.bincount([names[i] for i in order[:k]], minlength=n)
            # Nobody is more than one candidate away from the same fraction of every tile.
            fractions = kept[sizes > 0] / sizes[sizes > 0]
            assert fractions.max() - fractions.min() <= 1 / sizes[sizes > 0].min() + 1e-9


def test_one_tile_is_the_plain_ranking() -> None:
    score = torch.rand(3, 40)
    index = sort_scores(score)[1]
    for number in (0, 17, 39):
        assert torch.equal(share_tiles(index, torch.full((3, 40), number)), index)


def test_large_items_compare_shares_exactly() -> None:
    """(r + 0.5) / m of tiles of 8191 and 8192: closer than float32 tells apart, and some are equal."""
    n = 16383
    tile = torch.cat([torch.zeros(8191, dtype=torch.int64), torch.ones(8192, dtype=torch.int64)])
    score = torch.from_numpy(np.random.default_rng(0).random((1, n), dtype=np.float32))
    got = share_tiles(sort_scores(score)[1], tile[None])[0].tolist()
    assert got == oracles.spread_ranking(score[0].tolist(), tile.tolist())


@pytest.mark.parametrize("finer", [[0.0, 3, 2, 1], [5.0, 5, 5, 5]])
def test_a_finer_score_only_parts_equals(finer: list[float]) -> None:
    score = torch.tensor([[0.0, 0, 7, 0]])
    curve, index = sort_scores(score, torch.tensor([finer]))
    assert curve.tolist() == [[7, 0, 0, 0]]
    assert index.tolist() == ([[2, 1, 3, 0]] if finer[0] == 0 else [[2, 0, 1, 3]])


def test_cosine_of_zero_vectors_is_zero() -> None:
    rows = torch.tensor([[[3.0, 4], [0, 0], [-1, 0]], [[1, 1], [2, 2], [0, 0]]])
    one = torch.tensor([[2.0, 0], [0, 0]])
    torch.testing.assert_close(cosine_similarity(rows, one), torch.tensor([[0.6, 0, -1], [0, 0, 0]]))
