"""Percentiles, and ratios of figures that were taken in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share (0 to 1) lies, between neighbours by a straight line; NaN of none.

    >>> percentile([1, 2, 3, 4], 0.5), percentile([5.0], 0.99)
    (2.5, 5.0)
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Spread:
    """The middle and the tail of some figures; with few of them the tail is their largest."""

    count: int
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of these."""
        return cls(len(values), *(percentile(values, share) for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True)
class Ratio:
    """Median and range of ratios taken round by round."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} [{self.low:.2f}-{self.high:.2f}]"


def paired(values: Sequence[float], others: Sequence[float]) -> Ratio | None:
    """Each value over the other of its round, so that a slow stretch hits both; None of none."""
    ratios = [one / other for one, other in zip(values, others, strict=False) if other > 0]
    return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None
