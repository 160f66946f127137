"""Order, count and positions: what every method returns and every graph gathers by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.pruning.selection import Selection, inverse, rank, remap, select_mask, select_ranked, select_top

SETTINGS = settings(max_examples=80, deadline=None)


@st.composite
def scores(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores ``[b, n]`` with many ties, and counts ``[b]`` from 0 to n."""
    b, n = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    levels = draw(st.integers(1, 9))
    rows = draw(st.lists(st.lists(st.integers(0, levels), min_size=n, max_size=n), min_size=b, max_size=b))
    count = draw(st.lists(st.integers(0, n), min_size=b, max_size=b))
    return torch.tensor(rows, dtype=torch.float32) / 10, torch.tensor(count)


def check(selection: Selection, n: int) -> None:
    """A permutation; the kept part ascends, and so does the rest."""
    for order, count in zip(selection.order.tolist(), selection.count.tolist(), strict=True):
        assert sorted(order) == list(range(n))
        assert order[:count] == sorted(order[:count])
        assert order[count:] == sorted(order[count:])


@SETTINGS
@given(scores())
def test_select_top(case: tuple[Tensor, Tensor]) -> None:
    score, count = case
    selection = select_top(score, count)
    check(selection, score.shape[1])
    assert selection.count.tolist() == count.tolist()
    assert (selection.order.dtype, selection.count.dtype) == (torch.int64, torch.int64)
    for row, order, k in zip(score.tolist(), selection.order.tolist(), count.tolist(), strict=True):
        # Each kept token beats each dropped one, by its score or else by a lower index.
        for kept in order[:k]:
            assert all((-row[kept], kept) < (-row[dropped], dropped) for dropped in order[k:])


@SETTINGS
@given(scores())
def test_integer_scores_are_selected_alike(case: tuple[Tensor, Tensor]) -> None:
    score, count = case
    whole = (score * 10).round().to(torch.int64)
    assert torch.equal(select_top(whole, count).order, select_top(score, count).order)


@SETTINGS
@given(scores())
def test_select_mask(case: tuple[Tensor, Tensor]) -> None:
    keep = case[0] > 0.2
    selection = select_mask(keep)
    check(selection, keep.shape[1])
    for row, order, count in zip(keep, selection.order.tolist(), selection.count.tolist(), strict=True):
        assert order[:count] == row.nonzero().flatten().tolist()


@SETTINGS
@given(scores(), st.integers(0, 2**31))
def test_rank_within_a_pool(case: tuple[Tensor, Tensor], seed: int) -> None:
    score = case[0]
    pool = torch.from_numpy(np.random.default_rng(seed).random(score.shape) < 0.6)
    for values in (score, (score * 10).to(torch.int64)):
        place = rank(values, pool)
        for b in range(score.shape[0]):
            members = pool[b].nonzero().flatten().tolist()
            best = [i for i in np.argsort(-score[b].numpy(), kind="stable").tolist() if i in members]
            assert [place[b, i].item() for i in best] == list(range(len(members)))
            assert all(place[b, i] >= len(members) for i in range(score.shape[1]) if i not in members)


@SETTINGS
@given(scores(), st.integers(0, 2**31))
def test_remap_finds_the_new_place(case: tuple[Tensor, Tensor], seed: int) -> None:
    score, count = case
    n = score.shape[1]
    selection = select_top(score, count)
    index = torch.from_numpy(np.random.default_rng(seed).integers(-1, n, (score.shape[0], 7)))
    moved = remap(index, selection)
    for b in range(score.shape[0]):
        kept = selection.order[b, : count[b]].tolist()
        assert moved[b].tolist() == [kept.index(i) if i in kept else -1 for i in index[b].tolist()]


def test_inverse() -> None:
    order = torch.tensor([[2, 0, 3, 1]])
    assert inverse(order).tolist() == [[1, 3, 0, 2]]
    assert torch.gather(order, 1, inverse(order)).tolist() == [[0, 1, 2, 3]]


def test_known_selection() -> None:
    selection = select_top(torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.2]]), torch.tensor([3]))
    assert selection.order.tolist() == [[1, 2, 3, 0, 4]]
    ranked = select_ranked(torch.tensor([[4, 0, 1, 2, 3]]), torch.tensor([2]))
    assert ranked.order.tolist() == [[0, 4, 1, 2, 3]]


@pytest.mark.parametrize("n", [1, 7])
def test_keep_all_and_keep_none(n: int) -> None:
    score = torch.rand(1, n)
    for count in (0, n):
        assert select_top(score, torch.tensor([count])).order.tolist() == [list(range(n))]
