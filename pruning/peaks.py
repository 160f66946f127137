"""Density peaks (DPC-KNN) among some rows of a sequence, each cluster merged into its centre.

As in the code of SparseVLM, with two differences: equal densities go by index, where the code adds noise, and
densities are compared as logarithms, where the code's underflow among hidden states that lie far apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.pruning.selection import rank, select_mask

_FAR = 1e30
"""Distance to what does not count: finite, and above every real one."""


def merge_peaks(hidden: Tensor, member: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Clusters the rows of ``member [b, s]`` around ``count [b]`` density peaks.

    Returns the centres ``[b, s]`` (bool) and ``hidden [b, s, d]`` with each centre's row replaced by the mean
    of its cluster. At most 30 % of the rows plus one are members: the squares below are of that size.
    """
    s = hidden.shape[1]
    index = select_mask(member).order[:, : s * 3 // 10 + 1]  # b r, members first
    there = torch.gather(member, 1, index)  # b r
    rows = torch.gather(hidden, 1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[2])).float()  # b r d
    square = squared_distances(rows, there)
    peak = there & (rank(_peak_scores(square, there, count), there) < count.unsqueeze(-1))
    place = torch.arange(index.shape[1], device=hidden.device)  # r
    nearest = torch.where(peak.unsqueeze(1), square, torch.full_like(square, _FAR)).argmin(dim=2)  # b r
    target = torch.where(peak, place, nearest)
    joins = ((target.unsqueeze(1) == place.unsqueeze(-1)) & there.unsqueeze(1)).to(rows.dtype)  # b r r
    means = torch.matmul(joins, rows) / torch.clamp(joins.sum(dim=-1, keepdim=True), min=1.0)
    row = torch.arange(s, device=hidden.device)
    back = (index.unsqueeze(1) == row.unsqueeze(-1)) & peak.unsqueeze(1)  # b s r
    centre = back.to(torch.int64).sum(dim=-1) > 0
    placed = torch.matmul(back.to(rows.dtype), means).to(hidden.dtype)
    return centre, torch.where(centre.unsqueeze(-1), placed, hidden)


def squared_distances(rows: Tensor, there: Tensor) -> Tensor:
    """``[b, r, r]``: squared distance of any two of ``rows [b, r, d]``, over d; exact symmetry and diagonal.

    Rows that are not ``there [b, r]`` are far from all. The mean goes first: hidden states have channels that
    are huge in every row, and would drown the differences.
    """
    weight = there.unsqueeze(-1).to(rows.dtype)  # b r 1
    total = torch.where(there.unsqueeze(-1), rows, torch.zeros_like(rows)).sum(dim=1, keepdim=True)
    centred = rows - total / torch.clamp(weight.sum(dim=1, keepdim=True), min=1.0)
    length = (centred * centred).sum(dim=-1, keepdim=True)  # b r 1
    square = length + length.transpose(1, 2) - 2 * torch.matmul(centred, centred.transpose(1, 2))
    square = torch.clamp(torch.maximum(square, square.transpose(1, 2)), min=0.0) / rows.shape[2]
    pair = there.unsqueeze(1) & there.unsqueeze(2)
    place = torch.arange(rows.shape[1], device=rows.device)
    square = torch.where(place.unsqueeze(-1) == place, torch.zeros_like(square), square)
    return torch.where(pair, square, torch.full_like(square, _FAR))


def _peak_scores(square: Tensor, there: Tensor, count: Tensor) -> Tensor:
    """Logarithm ``[b, r]`` of density times distance to the nearest denser row (the farthest of all: none).

    The density is exp(-mean squared distance to the ``count [b]`` nearest, itself included).
    """
    place = torch.arange(square.shape[1], device=square.device)
    near = torch.sort(square, dim=-1)[0]
    used = place < count.unsqueeze(-1).unsqueeze(-1)  # b 1 r
    sparse = torch.where(used, near, torch.zeros_like(near)).sum(dim=-1)  # b r
    sparse = sparse / torch.clamp(count.unsqueeze(-1).to(sparse.dtype), min=1.0)
    mine, other = sparse.unsqueeze(2), sparse.unsqueeze(1)
    before = place < place.unsqueeze(-1)  # r r: the other one has the lower index
    denser = there.unsqueeze(1) & ((other < mine) | ((other == mine) & before))
    gap = torch.where(denser, square, torch.full_like(square, _FAR)).amin(dim=-1)  # b r
    pair = there.unsqueeze(1) & there.unsqueeze(2)
    widest = torch.where(pair, square, torch.zeros_like(square)).amax(dim=(1, 2)).unsqueeze(-1)  # b 1
    gap = torch.minimum(gap, widest)
    return 0.5 * torch.log(torch.clamp(gap, min=1e-30)) - sparse
