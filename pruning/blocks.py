"""Small blocks for methods with weights of their own: linear, layer norm, perceptron, attention.

Weights are stored the way the graph multiplies them, ``[in, out]``; adapters hold them alike. Created empty
(they may be traced under fake tensors); :func:`start_linear` and its neighbours give them first values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def weight(*shape: int) -> nn.Parameter:
    """An empty parameter that nothing trains until a trainer says so."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


class Linear(nn.Module):
    """``y = x W + b``, ``W [in, out]``."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = weight(inputs, outputs)
        self.bias = weight(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with learnt scale and shift."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight(width), weight(width), eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]``, float32."""
        return functional.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


class Perceptron(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, inner: int, outputs: int | None = None) -> None:
        super().__init__()
        self.fc1 = Linear(width, inner)
        self.fc2 = Linear(inner, width if outputs is None else outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., outputs]``."""
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y


class SelfAttention(nn.Module):
    """Multi-head attention of rows ``[b, n, width]`` among themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, sees: Tensor) -> Tensor:
        """``sees`` bool ``[b, n or 1, n]``: which rows each row looks at; one of them at least."""
        b, n, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.reshape(b, n, self.heads, width // self.heads).transpose(1, 2)  # b n (h e) -> b h n e

        query, key, value = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        logits = torch.matmul(query, key.transpose(2, 3)) * (width // self.heads) ** -0.5  # b h n n
        hidden = (~sees).to(logits.dtype).unsqueeze(1) * -1e30  # finite: no row turns into NaN
        mixed = torch.matmul(torch.softmax(logits + hidden, dim=-1), value)
        rows: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(b, n, width))  # b h n e -> b n (h e)
        return rows


@torch.no_grad()
def start_linear(linear: Linear, scale: float = 1.0) -> None:
    """Normal weights of standard deviation ``scale / sqrt(in)``, no shift; drawn from torch's generator."""
    nn.init.normal_(linear.weight, std=scale / math.sqrt(linear.weight.shape[0]))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


@torch.no_grad()
def start_identity(linear: Linear) -> None:
    """What comes in goes out (square weights)."""
    nn.init.eye_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


@torch.no_grad()
def start_norm(norm: LayerNorm) -> None:
    """Scale one, no shift."""
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
