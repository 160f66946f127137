"""A linear layer whose weight is stored the way the graph multiplies it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """`y = x W + b` with `W` as `[in, out]`, the transpose of a checkpoint's tensor.

    A `Transpose` node in front of every `MatMul` would be folded by ONNX Runtime at load time into a private
    copy, so the weights could no longer be shared with the file. The writer transposes once instead
    (`foveate.export.weights`).
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def transposed_weights(module: nn.Module) -> frozenset[str]:
    """Names of the parameters of `module` that are stored transposed with respect to the checkpoint."""
    return frozenset(f"{name}.weight" for name, child in module.named_modules() if isinstance(child, Linear))
