"""What one graph takes and gives: names, dtypes, axes, and how to build the module behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from foveate.export.methods import build_method
from foveate.pruning.plan import CutSpec

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}

# A size per named axis, used only while tracing. Distinct and above one, so that no two axes are taken
# for the same one and none is specialised to 0 or 1.
EXAMPLE_SIZES: Final[Mapping[str, int]] = {
    "batch": 2,
    "sequence": 13,
    "rows": 7,
    "kept": 5,
    "query": 3,
    "wanted": 4,
    "length": 11,
    "text": 6,
    "texts": 9,
    "past_texts": 14,
    "tile_rows": 15,
    "near_rows": 16,
    "tokens": 17,
    "tiles": 3,
    "patches": 19,
    "frames": 2,
    "windows": 8,
    "lines": 9,
    "columns": 10,
    "cells": 12,
}
CAPACITY_EXAMPLE: Final = 31
TEXT_CAPACITY_EXAMPLE: Final = 71


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: a name, a dtype and a shape whose named axes are dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def example(self) -> Tensor:
        """Returns zeros of an example shape (used under fake tensors: nothing is allocated)."""
        return torch.zeros([_example_size(axis) for axis in self.shape], dtype=DTYPES[self.dtype])


def _example_size(axis: int | str) -> int:
    if isinstance(axis, int):
        return axis
    if "capacity" in axis:
        first = TEXT_CAPACITY_EXAMPLE if axis.startswith("text") else CAPACITY_EXAMPLE
        return first + int(axis.rpartition("_")[2])
    return EXAMPLE_SIZES[axis]


class StageModule(nn.Module):
    """A module with named inputs and outputs: `run` maps one dictionary of tensors to another.

    `torch.export` wants positional tensors, people want names; `forward` is the bridge.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        super().__init__()
        self.input_names = tuple(spec.name for spec in inputs)
        self.output_names = tuple(spec.name for spec in outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = self.run(dict(zip(self.input_names, tensors, strict=True)))
        return tuple(results[name] for name in self.output_names)

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class Stage:
    """A graph to be written: `build` is called under fake tensors and allocates nothing."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    build: Callable[[], StageModule]


def budget_inputs(cut: CutSpec, suffix: str = "", axis: int | str = "batch") -> tuple[TensorSpec, ...]:
    """The per-request budget of a cut as graph inputs; 0 leaves the count to the method's rule."""
    seed = (TensorSpec(f"seed{suffix}", "int64", (axis,)),) if build_method(cut).needs_seed else ()
    return (
        TensorSpec(f"keep_ratio{suffix}", "float32", (axis,)),
        TensorSpec(f"keep_tokens{suffix}", "int64", (axis,)),
        *seed,
    )
