"""Greedy selection: one candidate per round, as many rounds as the largest count of the batch.

The number of rounds is data, so these are operators of their own (``foveate::*``): torch runs the plain loops
below, the exporter writes an ONNX ``Loop`` (``foveate.export.loops``). Both say in which round each candidate
was taken, so ``select_mask(taken < count)`` keeps what a row's own count allows: the first rounds of a longer
run are the shorter run.

Ties go to the lower index. Float32 throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXHAUSTED = 1e-5
"""Share of its first gain under which a candidate counts as spanned by the chosen: above float32's noise."""

TAKEN = 2.0
"""Above any cosine; so far below its diagonal entry a spanned candidate of ``map_rounds`` is ranked."""


def cosine_matrix(rows: Tensor) -> Tensor:
    """``[b, n, n]`` float32: cosine of any two of ``rows [b, n, d]``; zero vectors give 0.

    Exactly symmetric with an exact diagonal, however a matrix product sums: such ties go by index.
    """
    rows = rows.float()
    norm = torch.sqrt((rows * rows).sum(dim=-1, keepdim=True))  # b n 1
    unit = rows / torch.clamp(norm, min=1e-12)
    cosine = torch.matmul(unit, unit.transpose(1, 2))
    place = torch.arange(rows.shape[1], device=rows.device)
    own = place.unsqueeze(1) == place  # n n
    whole = torch.where(norm > 0, torch.ones_like(norm), torch.zeros_like(norm))  # b n 1
    return torch.where(own, whole, torch.maximum(cosine, cosine.transpose(1, 2)))


def spread_rounds(similarity: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Farthest-point order: each round takes the candidate whose closest chosen one is the least similar.

    Args:
        similarity: ``[b, n, n]`` within [-1, 1], symmetric.
        first: int64 ``[b]``, taken in round 0.
        count: int64 ``[b]``, the largest of which is the number of rounds.

    Returns:
        int64 ``[b, n]``: the round that took each candidate; n for none.
    """
    rounds: Tensor = torch.ops.foveate.spread_rounds(similarity, first, count)
    return rounds


def map_rounds(kernel: Tensor, count: Tensor) -> Tensor:
    """Greedy maximum a posteriori of a determinantal point process, by its Cholesky factor.

    Each round takes the candidate that adds most to the determinant of the chosen block, and projects it out
    of the kernel. Candidates that the chosen ones span (``EXHAUSTED``) add nothing: they are taken last, by
    their own diagonal entry.

    Args:
        kernel: ``[b, n, n]`` symmetric, positive semidefinite, diagonal within [0, 1].
        count: int64 ``[b]``, the largest of which is the number of rounds.

    Returns:
        int64 ``[b, n]``: the round that took each candidate; n for none.
    """
    rounds: Tensor = torch.ops.foveate.map_rounds(kernel, count)
    return rounds


@torch.library.custom_op("foveate::spread_rounds", mutates_args=())
def _spread(similarity: Tensor, first: Tensor, count: Tensor) -> Tensor:
    b, n, _ = similarity.shape
    place = torch.arange(n, device=similarity.device)
    taken = torch.full_like(similarity[:, 0], n, dtype=torch.int64)  # b n
    closest = torch.full_like(similarity[:, 0], -TAKEN)  # b n
    pick = first.unsqueeze(1)  # b 1
    for number in range(int(count.max())):
        chosen = place == pick  # b n
        taken = torch.where(chosen, number, taken)
        row = torch.gather(similarity, 1, pick.unsqueeze(2).expand(b, 1, n)).squeeze(1)  # b n
        closest = torch.where(chosen, TAKEN, torch.maximum(closest, row))
        pick = closest.argmin(dim=1, keepdim=True)
    return taken


@torch.library.custom_op("foveate::map_rounds", mutates_args=())
def _map(kernel: Tensor, count: Tensor) -> Tensor:
    b, n, _ = kernel.shape
    place = torch.arange(n, device=kernel.device)
    taken = torch.full_like(kernel[:, 0], n, dtype=torch.int64)  # b n
    own = torch.diagonal(kernel, dim1=1, dim2=2)  # b n
    floor, gain, rest = own * EXHAUSTED, own, kernel
    pick = own.argmax(dim=1, keepdim=True)  # b 1
    for number in range(int(count.max())):
        chosen = place == pick  # b n
        taken = torch.where(chosen, number, taken)
        row = torch.gather(rest, 1, pick.unsqueeze(2).expand(b, 1, n)).squeeze(1)  # b n
        best, least = torch.gather(gain, 1, pick), torch.gather(floor, 1, pick)  # b 1
        row = torch.where(best > least, row / torch.sqrt(torch.maximum(best, least) + 1e-30), 0.0)
        rest = rest - row.unsqueeze(2) * row.unsqueeze(1)
        gain = gain - row * row
        score = torch.where(gain > floor, gain, own - TAKEN)
        pick = torch.where(taken < n, -2 * TAKEN, score).argmax(dim=1, keepdim=True)
    return taken


@_spread.register_fake
def _(similarity: Tensor, first: Tensor, count: Tensor) -> Tensor:
    return torch.empty_like(similarity[:, 0], dtype=torch.int64)


@_map.register_fake
def _(kernel: Tensor, count: Tensor) -> Tensor:
    return torch.empty_like(kernel[:, 0], dtype=torch.int64)
