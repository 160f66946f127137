"""Which shapes an engine was built for, which of its profiles takes given ones, and what is wrong if none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Shapes `(least, most)` of every input with a dynamic axis; `index` is the engine's number for it."""

    index: int
    ranges: Mapping[str, tuple[Shape, Shape]]

    def holds(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether all shapes are in its ranges; inputs that it does not know are static."""
        return not self.misfits(shapes)

    def misfits(self, shapes: Mapping[str, Shape]) -> list[Misfit]:
        """Axes that are out of its ranges."""
        found = []
        for name, shape in shapes.items():
            least, most = self.ranges.get(name, (shape, shape))
            found += [
                Misfit(name, axis, size, low, high)
                for axis, (size, low, high) in enumerate(zip(shape, least, most, strict=True))
                if not low <= size <= high
            ]
        return found

    @property
    def volume(self) -> int:
        """Elements of all inputs at their largest, by which profiles are told large from small."""
        return sum(math.prod(most) for _, most in self.ranges.values())


@dataclass(frozen=True)
class Misfit:
    """Axis `axis` of input `name` has `size` entries, where a profile takes `low` to `high`."""

    name: str
    axis: int
    size: int
    low: int
    high: int


def least_shapes(profiles: Sequence[Profile]) -> dict[str, Shape]:
    """The smallest shape that any profile takes, of every input with a dynamic axis."""
    every = [(name, least) for profile in profiles for name, (least, _) in profile.ranges.items()]
    return {name: min(least for other, least in every if other == name) for name, _ in every}


def choose(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> Profile | None:
    """The smallest profile that takes the shapes: a step of one token is not run as a prompt."""
    fitting = [profile for profile in profiles if profile.holds(shapes)]
    return min(fitting, key=lambda profile: profile.volume, default=None)


def nearest(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> list[Misfit]:
    """What is wrong with the profile that comes closest: the one with the fewest axes out of range.

    Among equals it is the largest, for that is the one to build anew.
    """
    best = min(profiles, key=lambda profile: (len(profile.misfits(shapes)), -profile.volume))
    return best.misfits(shapes)
