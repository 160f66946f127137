"""Activation functions by the names that `config.json` uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from foveate.runtime.errors import CheckpointError


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "gelu": functional.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "swish": functional.silu,
}


def find_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Returns the activation called `name`; raises `CheckpointError` listing the known ones."""
    if name not in ACTIVATIONS:
        raise CheckpointError(
            "unknown activation function in config.json",
            found=repr(name),
            wanted=f"one of {', '.join(ACTIVATIONS)}",
            mend="add it to export/blocks/activation.py",
        )
    return ACTIVATIONS[name]
