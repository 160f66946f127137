"""Normalisation layers under the names that checkpoints use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), float32, learnt scale; `offset` counts it from 1."""

    def __init__(self, width: int, eps: float, *, offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight + 1.0 if self.offset else self.weight
        return functional.rms_norm(x, (x.shape[-1],), scale, self.eps)


class LayerNorm(nn.Module):
    """Layer normalisation with learnt scale and shift."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
