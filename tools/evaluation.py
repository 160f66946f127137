"""The figures of an evaluation: right answers with their intervals, and what was kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from foveate.tools.demo_model.scenes import TWO_HOP

OWN_RULE = "own rule"
METHOD, RANDOM = "method", "random"


@dataclass(frozen=True)
class Tally:
    """Right answers out of so many."""

    right: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """Accuracy in 0..1."""
        return self.right / self.total if self.total else 0.0

    def plus(self, right: bool) -> Tally:
        """One more answer."""
        return Tally(self.right + right, self.total + 1)

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's score interval (95 %): right also near 0 and 1, where the usual one leaves the range."""
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Point:
    """One method at one budget: accuracy in all and by kind, and what was kept.

    `kept` is the mean share of visual tokens behind the last site, `layer_average` the mean share over the
    decoder's layers, `sites` the mean share that each site let through; `counts` the tokens kept of each
    scene at the encoder.
    """

    method: str
    budget: str
    accuracy: Tally
    kinds: Mapping[str, Tally]
    kept: float
    layer_average: float
    sites: Mapping[str, float]
    counts: tuple[int, ...] = field(default=(), repr=False)

    @property
    def two_hop(self) -> Tally:
        """The questions that take two look-ups."""
        found = [tally for kind, tally in self.kinds.items() if kind in TWO_HOP]
        return Tally(sum(t.right for t in found), sum(t.total for t in found))

    def to_json(self) -> dict[str, Any]:
        """Plain values; accuracies in percent with their intervals."""
        return {
            "method": self.method,
            "budget": self.budget,
            "kept": round(self.kept, 4),
            "layer_average": round(self.layer_average, 4),
            "sites": {site: round(share, 4) for site, share in self.sites.items()},
            "accuracy": _tally_json(self.accuracy),
            "two_hop": _tally_json(self.two_hop),
            "kinds": {kind: _tally_json(tally) for kind, tally in self.kinds.items()},
        }


@dataclass(frozen=True)
class Evaluation:
    """All points of one run."""

    bundle: str
    site: str
    layout: str
    scenes: int
    points: tuple[Point, ...]

    def point(self, method: str, budget: str) -> Point:
        """The point of a method at a budget. Raises KeyError."""
        return {(point.method, point.budget): point for point in self.points}[method, budget]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        own = asdict(self)
        return {**own, "points": [point.to_json() for point in self.points]}


def _tally_json(tally: Tally) -> dict[str, Any]:
    low, high = tally.interval()
    return {
        "percent": round(100 * tally.share, 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
        "right": tally.right,
        "total": tally.total,
    }
