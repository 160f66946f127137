"""Comparing arrays: how far apart, where it starts, where it is worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.tools.parity.tolerances import FEATURE_RELATIVE, allowed


@dataclass(frozen=True)
class Difference:
    """The outcome of comparing `got` with `wanted`, both of `shape`.

    `largest` and `mean` are absolute differences, None where no floats were compared. `first` is the first
    index (row-major) that is out of tolerance, None when the arrays agree; `worst` is the index of the
    largest difference. `problem` says in words what is wrong, and is empty when the arrays agree.
    """

    shape: tuple[int, ...]
    largest: float | None = None
    mean: float | None = None
    first: tuple[int, ...] | None = None
    worst: tuple[int, ...] | None = None
    problem: str = ""

    @property
    def agrees(self) -> bool:
        """Whether everything is within tolerance."""
        return not self.problem


def close(got: np.ndarray, wanted: np.ndarray, *, absolute_only: bool = False) -> Difference:
    """Compare float arrays of equal shape elementwise against the float32 tolerance."""
    return within(got, wanted, allowed(_finite(wanted), absolute_only=absolute_only))


def close_rows(got: np.ndarray, wanted: np.ndarray) -> Difference:
    """Compare rows that a method rewrote: to a share of the largest number among them."""
    size = float(np.abs(_finite(wanted)).max(initial=0.0))
    return within(got, wanted, np.full(wanted.shape, FEATURE_RELATIVE * size))


def within(got: np.ndarray, wanted: np.ndarray, limit: np.ndarray) -> Difference:
    """Compare float arrays elementwise; `limit` has the largest permitted absolute differences."""
    if got.shape != wanted.shape:
        return Difference(got.shape, problem=f"shape {list(got.shape)} instead of {list(wanted.shape)}")
    if got.size == 0:
        return Difference(got.shape)
    with np.errstate(invalid="ignore"):
        gap = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    # What is no number on either side is a difference, also where both sides agree on it.
    gap = np.where(np.isfinite(got) & np.isfinite(wanted), gap, np.inf)
    outside = gap > limit
    worst = _index(int(gap.argmax()), gap.shape)
    figures = (float(gap.max()), float(gap.mean()))
    if not outside.any():
        return Difference(got.shape, *figures, worst=worst)
    first = _index(int(outside.argmax()), gap.shape)
    problem = (
        f"{int(outside.sum())} of {gap.size} values differ, first at {list(first)}: "
        f"{got[first]:.6g} instead of {wanted[first]:.6g}"
    )
    return Difference(got.shape, *figures, first, worst, problem)


def equal(got: Sequence[int], wanted: Sequence[int]) -> Difference:
    """Compare two lists of integers (kept indices, tokens): equal, or where they first part."""
    got, wanted = list(got), list(wanted)
    if got == wanted:
        return Difference((len(got),))
    at = next(
        (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted))
    )
    here = str(got[at]) if at < len(got) else "the end"
    there = str(wanted[at]) if at < len(wanted) else "the end"
    problem = f"{len(got)} against {len(wanted)} items, first different at [{at}]: {here} instead of {there}"
    extra, missing = sorted(set(got) - set(wanted)), sorted(set(wanted) - set(got))
    if len(got) == len(set(got)) and (extra or missing):
        problem += f" (in excess: {extra[:8]}, missing: {missing[:8]})"
    return Difference((len(got),), None, None, (at,), (at,), problem)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nan_to_num(values, posinf=0.0, neginf=0.0))


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))
