"""The two searches, as functions of any measure of a schedule.

Facts of arXiv 2412.00556: G-Search goes from shallow to deep and finds for each layer the smallest rate that
costs nothing, assuming that deeper layers never need more tokens; P-Sigmoid draws the rates on a sigmoid over
the depth, its mean given by a budget, and searches its steepness. The rest is reconstruction (no code, and
not all of the paper could be read): deeper layers are tied to the candidate rate while a layer is searched
(what is dropped does not return), bisection in place of Bayesian optimisation where one number is sought and
the measure is assumed to be monotone, a grid with two refinements for the steepness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from foveate.tools.search.rates import Depth, Rates

Measure = Callable[[Rates], float]
"""Share of right answers under a schedule, in 0..1."""

GRID = (
    0.0,
    0.03125,
    0.0625,
    0.09375,
    0.125,
    0.1875,
    0.25,
    0.3125,
    0.375,
    0.4375,
    0.5,
    0.625,
    0.75,
    0.875,
    1.0,
)
"""Rates that G-Search tries: finer where fewer tokens are left. 0 leaves one token."""

TOLERANCES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0)
"""Losses of accuracy that are tried in turn until a schedule fits into a budget."""

STEEPNESS = (0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 256.0)
"""Fall of the sigmoid's argument over the whole depth: 0 is flat, the last is a step."""

_REFINEMENTS = 2


class Answer(NamedTuple):
    """What a search found: the schedule, and the number that it searched (a loss, or a steepness)."""

    rates: Rates
    parameter: float


def g_search(depth: Depth, measure: Measure, floor: float, grid: Sequence[float] = GRID) -> Rates:
    """The smallest rates, from shallow to deep, under which ``measure`` stays at ``floor`` or above.

    The tolerance is against the unpruned model at every layer, not against the layer before: losses must not
    add up.
    """
    rates = [1.0] * len(depth.places)
    for i in range(len(rates)):
        options = [rate for rate in sorted(grid) if rate <= rates[i]]
        low, high = 0, len(options) - 1  # the last one is what we have
        while low < high:
            middle = (low + high) // 2
            if measure(_tied(rates, i, options[middle])) >= floor:
                high = middle
            else:
                low = middle + 1
        rates = list(_tied(rates, i, options[high]))
    return tuple(rates)


def g_search_within(depth: Depth, measure: Measure, full: float, budget: float) -> Answer:
    """G-Search at the smallest loss at which its schedule fits into a budget (layer average)."""
    tight = loose = TOLERANCES[0]
    for loose in TOLERANCES:
        rates = g_search(depth, measure, full - loose)
        if depth.average(rates) <= budget:
            break
        tight = loose
    for _ in range(_REFINEMENTS if tight < loose else 0):
        middle = (tight + loose) / 2
        found = g_search(depth, measure, full - middle)
        if depth.average(found) <= budget:
            rates, loose = found, middle
        else:
            tight = middle
    return Answer(rates, loose)


def p_sigmoid(depth: Depth, measure: Measure, budget: float) -> Answer:
    """The steepness whose sigmoid answers best at a budget; of equals the flatter one."""
    found: dict[float, float] = {}

    def look(steepness: float) -> None:
        if steepness not in found:
            found[steepness] = measure(sigmoid_rates(depth, steepness, budget))

    for steepness in STEEPNESS:
        look(steepness)
    for _ in range(_REFINEMENTS):
        known = sorted(found)
        at = known.index(_best(found))
        for other in known[max(at - 1, 0) : at] + known[at + 1 : at + 2]:
            look((known[at] + other) / 2)
    best = _best(found)
    return Answer(sigmoid_rates(depth, best, budget), best)


def sigmoid_rates(depth: Depth, steepness: float, budget: float) -> Rates:
    """Rates on ``sigma(offset - steepness * layer / num_layers)``, their mean with the first layers' 1 given.

    The offset is found by bisection; a block of layers takes the mean of its layers, so that few cuts keep
    the budget.
    """
    first, last = depth.places[0], depth.num_layers
    wanted = budget * last - first
    low, high = -50.0, 50.0 + steepness
    for _ in range(200):
        offset = (low + high) / 2
        if sum(_sigmoid(offset - steepness * i / last) for i in range(first, last)) > wanted:
            high = offset
        else:
            low = offset
    rates, start = [], first
    for size in depth.blocks:
        layers = range(start, start + size)
        rates.append(round(sum(_sigmoid(low - steepness * i / last) for i in layers) / size, 4))
        start += size
    return tuple(rates)


def _tied(rates: Sequence[float], i: int, rate: float) -> Rates:
    """``rates`` up to place ``i``, then ``rate`` to the end."""
    return (*rates[:i], *[rate] * (len(rates) - i))


def _best(found: dict[float, float]) -> float:
    return min(found, key=lambda steepness: (-found[steepness], steepness))


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))
