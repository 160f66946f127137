"""A linear layer whose weight is stored the way the graph multiplies it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """Which part of a checkpoint's weight `[out, in]` a layer takes.

    Attributes:
        axis: 0 for some of the outputs, 1 for some of the inputs.
        spans: from, to; ascending.
        size: of the whole axis.
    """

    axis: int
    spans: tuple[tuple[int, int], ...]
    size: int

    @property
    def width(self) -> int:
        """How many of them."""
        return sum(stop - start for start, stop in self.spans)

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The checkpoint's shape, for a part of `shape`."""
        return tuple(self.size if axis == self.axis else size for axis, size in enumerate(shape))

    def cut(self, tensor: Tensor) -> Tensor:
        """The part of a checkpoint's tensor; a bias follows the outputs, and is whole for some inputs."""
        if self.axis >= tensor.dim():
            return tensor
        return torch.cat([tensor.narrow(self.axis, a, b - a) for a, b in self.spans], dim=self.axis)


class Linear(nn.Module):
    """`y = x W + b` with `W` as `[in, out]`, the transpose of a checkpoint's tensor.

    A `Transpose` node in front of every `MatMul` would be folded by ONNX Runtime at load time into a private
    copy, so the weights could no longer be shared with the file. The writer transposes once instead
    (`foveate.export.weights`). With `piece`, the checkpoint's tensor is larger: the writer cuts it, too.
    A weight that other arithmetic reads is `bare`: it is never stored in another precision.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        piece: Piece | None = None,
        bare: bool = False,
    ) -> None:
        super().__init__()
        self.piece, self.bare = piece, bare
        self.weight = nn.Parameter(torch.empty(in_features, out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def transposed_weights(module: nn.Module) -> frozenset[str]:
    """Names of the parameters of `module` that are stored transposed with respect to the checkpoint."""
    return frozenset(f"{name}.weight" for name, child in module.named_modules() if isinstance(child, Linear))


def multiplied_weights(module: nn.Module) -> frozenset[str]:
    """Names of the parameters of `module` that are nothing but the right-hand sides of products."""
    linear = ((name, child) for name, child in module.named_modules() if isinstance(child, Linear))
    return frozenset(f"{name}.weight" for name, child in linear if not child.bare)


def partial_weights(module: nn.Module) -> dict[str, Piece]:
    """Parameters of `module` that are parts of a checkpoint's tensors."""
    linear = ((name, child) for name, child in module.named_modules() if isinstance(child, Linear))
    return {f"{name}.{part}": x.piece for name, x in linear if x.piece for part in ("weight", "bias")}
