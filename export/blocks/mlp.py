"""The two-layer perceptron of encoders, under the names that most checkpoints use."""

from __future__ import annotations

from torch import Tensor, nn

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.linear import Linear


class MLP(nn.Module):
    """`[b, n, c] -> [b, n, c]` through `inner` channels."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, inner, bias=True)
        self.fc2 = Linear(inner, width, bias=True)
        self.activation = find_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y
