"""Dropping rows: how a selection becomes a shorter sequence. Shared by all methods and both layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.pruning.selection import Selection


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Returns rows `index [b, k]` of `x [b, s, ...]` as `[b, k, ...]`; `x` has two or three axes."""
    if x.dim() == 2:
        return torch.gather(x, 1, index)
    return torch.gather(x, 1, index[:, :, None].expand(-1, -1, x.shape[2]))  # b k -> b k d


def longest_kept(selection: Selection) -> Tensor:
    """Returns the kept index `[b, max(count)]`, a data-dependent length.

    Rows that keep fewer are padded on the right with dropped tokens: their `length` says where they end.
    """
    order, count = selection.order, selection.count
    k = count.max().item()
    torch._check(k >= 1)  # type: ignore[no-untyped-call]
    torch._check(k <= order.shape[1])  # type: ignore[no-untyped-call]
    return order[:, :k]


def kept_rows(features: Tensor, selection: Selection) -> Tensor:
    """Returns the kept rows of `features [b, n, c]`, image after image, as `[sum(count), c]`.

    `NonZero` of a boolean mask: the one data-dependent shape of the fused layout's vision graph.
    """
    order, count = selection.order, selection.count
    b, n = order.shape
    kept = torch.arange(n)[None, :] < count[:, None]  # b n
    slot = torch.nonzero(kept.reshape(-1)).squeeze(1)  # (b n) -> k
    row = order.reshape(-1).index_select(0, slot) + slot // n * n  # rows of the flattened features
    return features.reshape(b * n, features.shape[2]).index_select(0, row)  # b n c -> k c
