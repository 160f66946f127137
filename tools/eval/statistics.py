"""How sure a comparison of methods is, and whether two orders of methods agree. Scenes are what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with the range that holds 95 % of what resampled scenes give."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the range is on one side of zero."""
        return self.low > 0 or self.high < 0


def difference(mine: Sequence[int], other: Sequence[int], questions: int) -> Estimate:
    """How much more often the first is right (-1..1); both answered the same scenes, so pairs are drawn."""
    gap = (np.array(mine) - np.array(other)).astype(np.float64) / questions  # scenes
    draws = gap[_resampled(len(gap))].sum(axis=1)  # draws scenes -> draws
    return Estimate(float(gap.sum()), *_range(draws))


def spearman(one: Sequence[float], two: Sequence[float]) -> float:
    """Rank correlation of two lists; equal values share the mean of their ranks.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    return float(_correlations(_ranks(np.array(one)), _ranks(np.array(two))))


def agreement(published: Sequence[float], rights: Sequence[Sequence[int]]) -> Estimate:
    """Rank correlation of published figures with right answers by scene, `rights[method][scene]`."""
    ours = np.array(rights, np.float64)  # methods scenes
    theirs = _ranks(np.array(published))
    draws = ours[:, _resampled(ours.shape[1])].sum(axis=2)  # methods draws
    found = [_correlations(theirs, _ranks(draw)) for draw in draws.T]
    return Estimate(float(_correlations(theirs, _ranks(ours.sum(axis=1)))), *_range(np.array(found)))


def _resampled(count: int) -> np.ndarray:
    """Scenes drawn with replacement: int `[DRAWS, count]`, the same ones every time."""
    return np.random.default_rng(0).integers(0, count, size=(DRAWS, count))


def _range(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their places."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    same = (values[None, :] == values[:, None]).sum(axis=1)
    ranks: np.ndarray = below + (same + 1) / 2
    return ranks


def _correlations(one: np.ndarray, two: np.ndarray) -> float:
    """Pearson's; 0 where one list says nothing."""
    a, b = one - one.mean(), two - two.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return round(float((a * b).sum()) / scale, 12) if scale else 0.0
