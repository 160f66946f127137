"""One budget for several images: against rules that are written out, token by token."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import make
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.runtime.arrays import ints
from foveate.runtime.chunk import VisualTokens
from foveate.runtime.errors import UsageError
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.sharing import best_of_all, keep_best, proportional, require_share, shared_feeds


@pytest.mark.parametrize(
    ("total", "sizes", "shares"),
    [
        (12, [10, 20, 30], [2, 4, 6]),
        (7, [10, 10], [4, 3]),  # equal remainders: the first one
        (3, [100, 1, 1], [1, 1, 1]),  # nobody goes without; the largest gives
        (2, [5, 5, 5], [1, 1, 1]),  # more images than tokens
        (100, [3, 4], [3, 4]),
        (5, [9], [5]),
        (4, [], []),
    ],
)
def test_proportional_examples(total: int, sizes: list[int], shares: list[int]) -> None:
    assert proportional(total, sizes) == shares


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_proportional_is_the_closest_split(total: int, sizes: list[int]) -> None:
    """Largest remainders are the least squares to the exact shares, among all splits that give each one."""
    shares = proportional(total, sizes)
    wanted = max(len(sizes), min(total, sum(sizes)))
    assert sum(shares) == wanted
    assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))
    exact = [Fraction(min(total, sum(sizes)) * size, sum(sizes)) for size in sizes]
    if all(share >= 1 for share in exact):

        def error(split: tuple[int, ...]) -> Fraction:
            return sum(((a - b) ** 2 for a, b in zip(split, exact, strict=True)), Fraction(0))

        splits = [split for split in product(*(range(1, s + 1) for s in sizes)) if sum(split) == wanted]
        assert error(tuple(shares)) == min(map(error, splits))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 20),
    st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, float("nan")]), min_size=1, max_size=6), max_size=4
    ),
)
def test_best_of_all(total: int, scores: list[list[float]]) -> None:
    """Against picking one after the other."""
    worth = [[-np.inf if np.isnan(s) else s for s in each] for each in scores]
    left = [(i, j) for i, each in enumerate(worth) for j in range(len(each))]
    chosen = []
    for i, each in enumerate(worth):
        chosen.append((i, each.index(max(each))))
        left.remove(chosen[-1])
    while left and len(chosen) < total:
        best = max(left, key=lambda place: (worth[place[0]][place[1]], -place[0], -place[1]))
        left.remove(best)
        chosen.append(best)
    found = best_of_all([np.array(each, np.float32) for each in scores], total)
    assert [np.flatnonzero(each).tolist() for each in found] == [
        sorted(j for i, j in chosen if i == number) for number in range(len(scores))
    ]


def test_budgets_of_several_prompts() -> None:
    manifest = make.manifest()

    def tokens(options: GenerateOptions) -> list[int]:
        return shared_feeds(manifest, options, [[6, 12], [], [4]])["keep_tokens"].tolist()  # type: ignore[no-any-return]

    assert tokens(GenerateOptions(keep_tokens=9)) == [9, 9, 9]
    assert tokens(GenerateOptions(keep_tokens=9, share="proportional")) == [3, 6, 4]
    assert tokens(GenerateOptions(keep_tokens=9, share="saliency")) == [6, 9, 4]
    assert tokens(GenerateOptions(keep={"encoder": Budget(tokens=6)}, share="proportional")) == [2, 4, 4]
    assert tokens(GenerateOptions(keep_ratio=0.5)) == [0, 0, 0]


def test_the_best_are_taken_from_what_was_kept() -> None:
    """Rows in memory, order and count all say the same afterwards."""
    visual = VisualTokens(
        features=np.arange(5, dtype=np.float32)[:, None],
        kept_index=ints([0, 1, 2, 3, 4]),
        order=(ints([0, 2, 3, 1]), ints([1, 2, 0])),
        count=ints([3, 2]),
        score=(np.float32([5, 9, 1, 3]), np.float32([0, 4, 2])),
    )
    options = GenerateOptions(keep_tokens=3, share="saliency")
    found = keep_best(visual, options, [2])
    assert [found.kept(i).tolist() for i in range(2)] == [[0, 3], [1]]
    assert [sorted(order.tolist()) for order in found.order] == [[0, 1, 2, 3], [0, 1, 2]]
    assert found.kept_index.tolist() == [0, 2, 3]
    apart = keep_best(visual, GenerateOptions(keep_tokens=1, share="saliency"), [1, 1])
    assert [apart.kept(i).tolist() for i in range(2)] == [[0], [1]]
    assert keep_best(visual, GenerateOptions(keep_tokens=3), [2]) is visual


def test_saliency_needs_a_method_that_ranks() -> None:
    require_share(GenerateOptions(keep_tokens=3, share="proportional"), gives_scores=False)
    require_share(GenerateOptions(keep_tokens=3, share="saliency"), gives_scores=True)
    with pytest.raises(UsageError, match="gives no scores"):
        require_share(GenerateOptions(keep_tokens=3, share="saliency"), gives_scores=False)
