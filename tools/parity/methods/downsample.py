"""downsample: means of cells of the patch grid. Whole numbers decide, so never fragile."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from foveate.tools.parity.counts import ceil_share, final_count
from foveate.tools.parity.facts import Budget, Choice, EncoderFacts, NoOracleError, Params


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Middles of the cells of one item, and the cells' means."""
    if facts.grid is None:
        raise NoOracleError("downsample needs one grid of patches")
    rows, columns = facts.grid
    n = rows * columns
    rule = ceil_share(params.get("ratio", 0.25), n)
    count = final_count(rule, n, budget.keep_ratio, budget.keep_tokens, {})
    bands = _bands(count, rows, columns)
    features = np.asarray(facts.features, dtype=np.float64)
    kept, means = [], []
    for band in range(bands):
        lines = _part(rows, bands, band)
        cells = (band + 1) * count // bands - band * count // bands
        for cell in range(cells):
            across = _part(columns, cells, cell)
            kept.append(lines[(len(lines) - 1) // 2] * columns + across[(len(across) - 1) // 2])
            members = [row * columns + column for row in lines for column in across]
            means.append(sum(features[i] for i in members) / len(members))
    return Choice(tuple(kept), False, np.stack(means))


def _bands(count: int, rows: int, columns: int) -> int:
    """The whole number nearest to sqrt(count rows / columns), within what fits."""
    square = Fraction(count * rows, columns)
    bands = 0
    while (Fraction(2 * bands + 1, 2)) ** 2 <= square:
        bands += 1
    return min(max(bands, math.ceil(count / columns)), count, rows)


def _part(size: int, parts: int, number: int) -> list[int]:
    """Places of one of several nearly equal parts."""
    return [place for place in range(size) if place * parts // size == number]
