"""Keep rates over the depth of a decoder: where cuts may be made, and what a schedule costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from foveate.runtime.errors import UsageError

Rates = tuple[float, ...]
"""One rate for each place, never rising: the share of the visual tokens that entered the decoder."""

UNRANKED = 2
"""Layers before the first cut: the paper finds the ranking of the first layer unlike all others, so that of
the second is the first to be used."""
SHALLOW = 16
"""Decoders with fewer layers may be cut behind the first: two layers would be much of their depth."""


@dataclass(frozen=True)
class Depth:
    """A decoder of ``num_layers`` and the places of possible cuts, as layers that have run.

    A cut's rate holds up to the next place. The places are few, because every cut gathers all rows: one
    behind each layer can cost more than it saves.
    """

    num_layers: int
    places: tuple[int, ...]

    @classmethod
    def spread(cls, num_layers: int, cuts: int, first: int | None = None) -> Depth:
        """At most ``cuts`` places, evenly from ``first`` on.

        Raises:
            UsageError: there is no layer ``first`` to cut behind.
        """
        if first is None:
            first = UNRANKED if num_layers >= SHALLOW else 1
        if not 1 <= first < num_layers:
            raise UsageError(
                "the first cut lies outside the decoder",
                found=f"behind layer {first} of {num_layers}",
                wanted=f"1 to {num_layers - 1}",
                mend="name another --first",
            )
        cuts = min(cuts, num_layers - first)
        return cls(num_layers, tuple(first + i * (num_layers - first) // cuts for i in range(cuts)))

    @property
    def blocks(self) -> tuple[int, ...]:
        """How many layers each rate holds for."""
        return tuple(after - before for before, after in pairwise((*self.places, self.num_layers)))

    @property
    def least(self) -> float:
        """The layer average of a schedule that keeps nothing behind the first place."""
        return self.places[0] / self.num_layers

    def average(self, rates: Rates) -> float:
        """Mean over all layers of the share of visual tokens present."""
        kept = sum(size * rate for size, rate in zip(self.blocks, rates, strict=True))
        return (self.places[0] + kept) / self.num_layers

    def check_budget(self, budget: float) -> None:
        """Raises UsageError when no schedule of these places has such a layer average."""
        if not 0 < budget < 1:
            raise UsageError(
                "the budget is out of range",
                found=f"{budget:g}",
                wanted="0 < budget < 1: the mean over all layers of the visual tokens kept",
            )
        if budget <= self.least:
            raise UsageError(
                "no schedule fits into the budget",
                found=f"{budget:g}, with all tokens in {self.places[0]} of {self.num_layers} layers",
                wanted=f"a budget above {self.least:.3g}",
                mend="give a larger --budget, or an earlier --first",
            )

    def cuts(self, rates: Rates) -> list[tuple[int, float]]:
        """``(layer, rate)`` where the rate falls; a rate that stays needs no cut."""
        before, found = 1.0, []
        for place, rate in zip(self.places, rates, strict=True):
            if rate < before:
                found.append((place, rate))
            before = rate
        return found


def tokens_of(rate: float, entered: int) -> int:
    """Visual tokens that ``layer-rank:share=rate`` leaves of so many that entered."""
    exact = rate * entered
    return min(max(math.floor(exact + 0.5 + max(1e-4, exact * 2.0**-23)), 1), entered)
