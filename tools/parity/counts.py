"""How many tokens a rule keeps, written as plain loops: budgets, rounding, knees.

Part of the oracles: no code of ``foveate.pruning``, one image or one sequence at a time, double precision.
Values that agree to within 1e-6 of a curve's height are equal, and the first of equals counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

FLAT = 1e-5  # a curve whose ends agree to this share of their size is flat
TIE = 1e-6  # values closer than this share of the curve's height are equal

Params = Mapping[str, Any]


def ceil_share(ratio: float, size: int) -> int:
    """``ceil(ratio * size)``, less the noise of rounding: 1e-4 of a token, or 2^-23 of the product."""
    product = ratio * size
    return math.ceil(product - max(1e-4, product / 2**23))


def scale_count(count: int, scale: float) -> int:
    """``count * scale`` rounded half up, with the same allowance for noise."""
    product = count * scale
    return math.floor(product + 0.5 + max(1e-4, product / 2**23))


def final_count(rule: int, size: int, keep_ratio: float, keep_tokens: int, params: Params) -> int:
    """The budget if there is one (tokens before ratio), else the rule's count within the method's limits."""
    if size == 0:
        return 0
    if keep_tokens > 0:
        return min(keep_tokens, size)
    if keep_ratio > 0:
        return min(max(ceil_share(keep_ratio, size), 1), size)
    multiple = params.get("round_to", 1)
    while rule % multiple:
        rule += 1
    if params.get("max_keep") is not None:
        rule = min(rule, params["max_keep"])
    return min(max(rule, int(params.get("min_keep", 1)), 1), size)


# Knees: each takes a falling list and gives a count, or None when there is no knee


def knee_chord(curve: Sequence[float], params: Params) -> int | None:
    """1 - x - y is largest, x and y scaled to [0, 1]; the knee itself is kept."""
    m, distances = len(curve), []
    for i in range(m):
        x = i / (m - 1)
        y = (curve[i] - curve[-1]) / (curve[0] - curve[-1])
        distances.append(1 - x - y)
    return _first_near(distances, max(distances), TIE) + 1 if max(distances) > TIE else None


def knee_recursive(curve: Sequence[float], params: Params) -> int | None:
    """The chord knee, plus the chord knee of what is left, unless that is flat next to the whole."""
    first = knee_chord(curve, params)
    if first is None:
        return None
    rest = curve[first:]
    if rest[0] - rest[-1] <= FLAT * (curve[0] - curve[-1]):
        return first
    return first + (knee_chord(rest, params) or 0)


def knee_cumulative(curve: Sequence[float], params: Params) -> int | None:
    """The cumulative curve leads its diagonal for as long as scores are above the mean."""
    mean = math.fsum(curve) / len(curve)
    count = 0
    while count < len(curve) and curve[count] - mean > TIE * (curve[0] - curve[-1]):
        count += 1
    return count


def knee_iqr(curve: Sequence[float], params: Params) -> int | None:
    """Scores above Q3 + 1.5 (Q3 - Q1), numpy's linear percentiles; at least one."""
    low, high = np.percentile(np.asarray(curve, dtype=np.float64), [25, 75])
    fence = float(high + 1.5 * (high - low))
    return max(1, sum(1 for each in curve if each - fence > TIE * (curve[0] - curve[-1])))


def knee_derivative(curve: Sequence[float], params: Params) -> int | None:
    """Largest first or second difference of the curve under a triangular window, after ``skip`` places."""
    m, half, skip = len(curve), params.get("smooth", 15) // 2, params.get("skip", 7)
    smooth = []
    for i in range(m):
        reach = min(half, i, m - 1 - i)
        weights = {i + step: reach + 1 - abs(step) for step in range(-reach, reach + 1)}
        smooth.append(math.fsum(curve[j] * weight for j, weight in weights.items()) / sum(weights.values()))
    measures = {}
    for i in range(m - 1):
        if params.get("difference", 1) == 1 and i >= skip:
            measures[i] = smooth[i] - smooth[i + 1]
        if params.get("difference", 1) == 2 and i >= max(skip, 1):
            measures[i] = smooth[i - 1] - 2 * smooth[i] + smooth[i + 1]
    tie = TIE * (curve[0] - curve[-1])
    if not measures or max(measures.values()) - min(measures.values()) <= tie:
        return None
    return min(i for i, value in measures.items() if value >= max(measures.values()) - tie) + 1


KNEES: dict[str, Callable[[Sequence[float], Params], int | None]] = {
    "chord": knee_chord,
    "recursive": knee_recursive,
    "cumulative": knee_cumulative,
    "iqr": knee_iqr,
    "derivative": knee_derivative,
}


def knee_count(curve: Sequence[float], params: Params) -> int:
    """Tokens before the knee of a falling list, times ``knee_scale``; all of them when there is no knee."""
    if _is_flat(curve):
        return len(curve)
    count = KNEES[params.get("knee", "chord")](curve, params)
    if count is None:
        return len(curve)
    return min(scale_count(count, params.get("knee_scale", 1.0)), len(curve))


def _is_flat(curve: Sequence[float]) -> bool:
    return not curve or curve[0] - curve[-1] <= FLAT * max(abs(curve[0]), abs(curve[-1]))


def _first_near(values: Sequence[float], top: float, tie: float) -> int:
    return next(i for i, value in enumerate(values) if value >= top - tie)
