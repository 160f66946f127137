"""uniform: ordered dithering on a grid, even stretches elsewhere. Whole numbers, so never fragile."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.tools.parity import oracles
from foveate.tools.parity.counts import ceil_share, final_count
from foveate.tools.parity.facts import Budget, Choice, DecoderFacts, EncoderFacts, Params


def encoder(params: Params, facts: EncoderFacts, budget: Budget) -> Choice:
    """Candidates of one item that stay."""
    n = len(facts.tile)
    count = _count(params, n, budget)
    if facts.grid is None or params.get("pattern", "grid") == "line":
        return Choice(tuple(_spaced(range(n), count)))
    side = 1
    while side < max(facts.grid):
        side *= 2
    matrix = _bayer(side)
    columns = facts.grid[1]
    ranking = sorted(range(n), key=lambda i: matrix[i // columns][i % columns])
    return Choice(tuple(sorted(ranking[:count])))


def decoder(params: Params, facts: DecoderFacts, budget: Budget) -> Choice:
    """Rows of one sequence that stay."""
    visual = [row for row, role in enumerate(facts.roles) if role == oracles.VISUAL]
    others = [row for row, role in enumerate(facts.roles) if role != oracles.VISUAL]
    chosen = _spaced(visual, _count(params, len(visual), budget))
    return Choice(tuple(sorted([*chosen, *others])))


def _count(params: Params, size: int, budget: Budget) -> int:
    rule = ceil_share(params.get("ratio", 0.25), size)
    return final_count(rule, size, budget.keep_ratio, budget.keep_tokens, {})


def _spaced(members: Sequence[int] | range, count: int) -> list[int]:
    """Walks along and takes one whenever the share that is due passes the next whole number and a half."""
    chosen: list[int] = []
    half = len(members) // 2
    for place, member in enumerate(members):
        if ((place + 1) * count + half) // len(members) > len(chosen):
            chosen.append(member)
    return chosen


def _bayer(side: int) -> list[list[int]]:
    """Bayer's matrix by its recursion: four copies of the half as large one, times 4, plus 0 2 3 1."""
    if side == 1:
        return [[0]]
    small = _bayer(side // 2)
    half = side // 2
    return [
        [
            4 * small[row % half][column % half] + ((0, 2), (3, 1))[row // half][column // half]
            for column in range(side)
        ]
        for row in range(side)
    ]
