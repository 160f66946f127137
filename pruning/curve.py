"""From the scores of an encoder's candidates to the kept ones: sort, knee, limits, shares of tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, resolve_count
from foveate.pruning.knee import knee_count
from foveate.pruning.selection import Selection, inverse, select_ranked, sort_scores
from foveate.pruning.spec import CurveConfig

_SHARE = 2**40
"""Fixed-point unit of a rank inside a tile: finer than any two shares of 2^15 candidates can lie apart."""


def cut_curve(
    score: Tensor, tile: Tensor, budget: Budget, config: CurveConfig, finer: Tensor | None = None
) -> Selection:
    """Keeps the head of the sorted ``score [b, n]`` (float32), up to the budget or the knee.

    ``tile [b, n]`` says which crop or frame a candidate shows; ``finer [b, n]`` decides between equal scores.
    """
    curve, index = sort_scores(score, finer)
    size = torch.ones_like(index).sum(dim=-1)
    count = resolve_count(
        budget,
        knee_count(curve, size, config),
        size,
        min_keep=config.min_keep,
        max_keep=config.max_keep,
        round_to=config.round_to,
    )
    if config.spread == "tile":
        index = share_tiles(index, tile)
    return select_ranked(index, count)._replace(score=score)


def share_tiles(index: Tensor, tile: Tensor) -> Tensor:
    """``index [b, n]``, best to worst, in an order whose every head takes about the same share of each tile.

    The candidate at place r of the m in its tile is ranked by (r + 0.5) / m, ties by the lower index.
    ``tile [b, n]`` holds numbers from 0 to n - 1, in any order, of tiles of any size.
    """
    first, size = _bounds(tile)
    # Stable: inside a tile the best stays first.
    grouped = torch.gather(index, 1, _ascending(torch.gather(tile, 1, index)))
    place = inverse(grouped) - first  # b n, in candidate order
    # Whole numbers compare the shares exactly. Not torch.div: the exporter writes its roundings in float32.
    share = (2 * place + 1) * _SHARE // (2 * size)
    return _ascending(share)


def cosine_similarity(rows: Tensor, one: Tensor) -> Tensor:
    """``[b, n]`` float32: cosine of each of ``rows [b, n, d]`` with ``one [b, d]``; zero vectors give 0."""
    rows, one = rows.float(), one.float().unsqueeze(1)  # b n d, b 1 d
    product = (rows * one).sum(dim=-1)
    norm = torch.sqrt((rows * rows).sum(dim=-1)) * torch.sqrt((one * one).sum(dim=-1))
    return product / torch.clamp(norm, min=1e-12)


def _bounds(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Per candidate, ``[b, n]`` each: how many candidates lower tiles have, and how many its own has.

    Counting by sorting: where the number v lands among the tiles says how many of them lie below v. It needs
    neither a number of tiles, which is data, nor a square of candidates.
    """
    b, n = tile.shape
    number = torch.arange(n + 1, device=tile.device).expand(b, -1)  # b n+1
    merged = _ascending(torch.cat([number, tile], dim=1))  # before its equals, being the lower index
    below = inverse(merged)[:, : n + 1] - number
    first = torch.gather(below, 1, tile)
    return first, torch.gather(below, 1, tile + 1) - first


def _ascending(value: Tensor) -> Tensor:
    return torch.sort(value, dim=-1, stable=True)[1]
