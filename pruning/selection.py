"""Order and count: the one contract of every pruning method, and the shared code around it.

``order`` is a permutation of the ``n`` candidates: the kept ones first, ascending, then the rest, ascending.
``count`` says how many are kept. Everything here is sorting and arithmetic: no scatter, no boolean indexing,
no in-place write, so it traces with dynamic sizes and maps to TopK, Where and Mod on every backend.

Tie policy: equal scores keep the lower index. ``torch.sort(stable=True)`` and ONNX ``TopK`` both guarantee
it. TensorRT documents neither this nor a ``TopK`` over more than 3839 candidates.

NaN scores mean that the model before has failed; what is then chosen is unspecified.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """What a method chose.

    Attributes:
        order: int64 ``[b, n]``, kept candidates first (ascending), then the others (ascending).
        count: int64 ``[b]``, how many of them are kept.
        score: float32 ``[b, n]``, what each candidate was ranked by, in candidate order; None where a method
            ranks by nothing that means something.
        features: the candidates' rows, rewritten (merging, grouping): ``[b, n, c]`` after the encoder,
            ``[b, s, d]`` in the decoder. Whoever comes next gathers ``order[:count]`` of these; rows that are
            not kept mean nothing. None: the rows stay as they were.
    """

    order: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody wants here
    score: Tensor | None = None
    features: Tensor | None = None


def sort_scores(score: Tensor, finer: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(curve, index)``, both ``[b, n]``: the scores in falling order and where each came from.

    ``finer [b, n]`` decides between equal scores, before the index does.
    """
    if finer is None:
        curve, index = torch.sort(score, dim=-1, descending=True, stable=True)
        return curve, index
    first = sort_scores(finer)[1]
    curve, second = sort_scores(torch.gather(score, 1, first))
    return curve, torch.gather(first, 1, second)


def select_top(score: Tensor, count: Tensor) -> Selection:
    """Keep the ``count [b]`` largest of ``score [b, n]`` (any sortable dtype; ties keep the lower index)."""
    return select_ranked(sort_scores(score)[1], count)


def select_ranked(index: Tensor, count: Tensor) -> Selection:
    """Keep the first ``count [b]`` entries of ``index [b, n]``, a permutation from best to worst."""
    n = index.shape[-1]
    best = torch.arange(n, device=index.device) < count.unsqueeze(-1)  # b n
    return Selection(_kept_first(index, best), count)


def select_mask(keep: Tensor) -> Selection:
    """Keep the candidates where ``keep [b, n]`` is true."""
    n = keep.shape[-1]
    index = torch.arange(n, device=keep.device).expand_as(keep)  # b n
    return Selection(_kept_first(index, keep), keep.to(torch.int64).sum(dim=-1))


def rank(score: Tensor, pool: Tensor) -> Tensor:
    """``[b, n]`` int64: place (0 = best) of each member of the boolean ``pool [b, n]`` among its members.

    Places outside the pool are never below the pool's size and mean nothing else. Integer scores must not be
    negative.
    """
    lowest = torch.full_like(score, -torch.inf) if score.is_floating_point() else torch.full_like(score, -1)
    index = sort_scores(torch.where(pool, score, lowest))[1]
    return inverse(index)


def inverse(order: Tensor) -> Tensor:
    """``[b, n]`` int64: where each candidate stands in the permutation ``order [b, n]``."""
    return torch.sort(order, dim=-1)[1]  # no ties in a permutation


def remap(index: Tensor, selection: Selection) -> Tensor:
    """New positions ``[b, m]`` of the old positions ``index [b, m]``: -1 when dropped, or when -1 came in."""
    place = torch.gather(inverse(selection.order), 1, torch.where(index < 0, torch.zeros_like(index), index))
    alive = (index >= 0) & (place < selection.count.unsqueeze(-1))
    return torch.where(alive, place, torch.full_like(index, -1))


def _kept_first(index: Tensor, keep: Tensor) -> Tensor:
    """``index [b, n]`` re-sorted: those marked by ``keep [b, n]`` ascending, then the others ascending."""
    n = index.shape[-1]
    # One sort does both halves: what is dropped is moved up by n, sorted, and moved back.
    key = torch.sort(torch.where(keep, index, index + n), dim=-1)[0]  # b n, no ties
    return torch.where(key < n, key, key - n)
