"""How much a kernel harms a layer: its numerics on recorded inputs, and the choice that follows.

Nothing is run here. Inputs come from `foveate.tools.precision`, which runs the fp32 graphs; products are
computed as the kernels compute them, activations quantised as they quantise them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from foveate.export.precision.form import block_size
from foveate.export.precision.layers import LinearLayer
from foveate.export.precision.plan import PrecisionPlan
from foveate.export.precision.quantize import by_block, by_column
from foveate.export.precision.typed_forms import StaticRange, to_eight

# What to try instead, cheapest first; `fp32` always fits. In decoding all 8-bit kernels cost the same; with
# many rows `int8` is the fastest, `int8-row` nearly so, and `int8-block` still faster than fp32.
CHEAPEST: Final[Mapping[str, tuple[str, ...]]] = {
    "int4-block": ("int4-block", "int8-row", "int8-block", "fp32"),
    "int8": ("int8", "int8-row", "int8-block", "fp32"),
    "int8-row": ("int8-row", "int8-block", "fp32"),
    "int8-block": ("int8-block", "fp32"),
    "fp16": ("fp16", "fp32"),
    "fp32": ("fp32",),
}
"""Of CPU kernels. On GPUs a layer that its kernel would harm gets its stage's half precision (`chain`)."""

# The largest relative error of a layer's output that is let pass. Well-behaved inputs give 0.01 with 8 bits
# (a range of 6 to 10 standard deviations in 255 steps) and 0.08 to 0.11 with 4 (rounding normal weights to 16
# steps): errors of a layer's own, which average out over the layers. Inputs with outliers, whose range is
# all that 255 steps can show, give 0.1 to 1 with 8 bits: those are what this catches.
LIMITS: Final[Mapping[str, float]] = {
    "int4-block": 0.16,
    "int8": 0.04,
    "int8-row": 0.04,
    "int8-block": 0.04,
    "int4-weight": 0.16,
    "int8-weight": 0.04,
    "int8-static": 0.04,
    # Three bits behind the point: 0.036 for what behaves well, and outliers cost it less than integers.
    "fp8": 0.06,
    "fp16": 0.002,
    "bf16": 0.02,
    "fp32": float("inf"),
}


@dataclass(frozen=True)
class Call:
    """What one call of a layer was given.

    Attributes:
        rows: float32 `[r, k]`, some of the rows.
        low, high: smallest and largest number in all the rows, and at most, at least 0.
    """

    rows: Tensor
    low: float
    high: float


def layer_errors(calls: Sequence[Call], weight: Tensor, kernels: Iterable[str]) -> dict[str, float]:
    """The relative error of a layer's output under each of some kernels.

    Root of the sum of squared differences over that of squared outputs, over all rows of all calls; 0 for a
    layer that never saw anything but zeros. `weight` is float32 `[k, n]`.
    """
    weight = weight.to(torch.float32)
    most = largest(calls)
    wanted = [call.rows @ weight for call in calls]
    size = sum(float(each.square().sum()) for each in wanted)
    found = {}
    for kernel in kernels:
        multiply = _KERNELS[kernel](weight, most)
        off = sum(
            float((multiply(call) - each).square().sum()) for call, each in zip(calls, wanted, strict=True)
        )
        found[kernel] = (off / size) ** 0.5 if size else 0.0
    return found


def choose_kernels(
    plan: PrecisionPlan, layers: Iterable[LinearLayer], errors: Mapping[str, Mapping[str, float]]
) -> PrecisionPlan:
    """The plan with the cheapest kernel within its limit for each layer.

    Args:
        plan: words for stages; kernels that it already gives stay.
        layers: of the export.
        errors: of each layer's kernels by layer name; layers that never ran are not in it and keep theirs.
    """
    kernels, seen = dict(plan.kernels), dict(plan.errors)
    for layer in layers:
        first = plan.kernel(layer)
        if layer.name not in errors or first == "fp32":
            continue
        own = errors[layer.name]  # may compute what it is asked for: nothing is asked twice, or in vain
        seen[layer.name] = own[first]
        fits = next(
            kernel
            for kernel in chain(layer, plan)
            if kernel == "fp32" or own.get(kernel, 1.0) <= LIMITS[kernel]
        )
        if fits != first:
            kernels[layer.name] = fits
    return replace(plan, kernels=kernels, errors=seen, measured=True)


def kernels_to_measure(layer: LinearLayer, plan: PrecisionPlan) -> tuple[str, ...]:
    """Those that `choose_kernels` and `next_better` may ask about."""
    return tuple(kernel for kernel in chain(layer, plan) if kernel != "fp32")


def chain(layer: LinearLayer, plan: PrecisionPlan) -> tuple[str, ...]:
    """What to try for a layer: its plan's kernel, then the better ones, cheapest first."""
    first = plan.kernel(layer)
    return CHEAPEST.get(first) or tuple(dict.fromkeys((first, plan.spare(layer.stage), "fp32")))


def next_better(kernels: Sequence[str], errors: Mapping[str, float]) -> str:
    """The cheapest of a layer's `chain` that at least halves the error of the first; `errors` by kernel."""
    first, *later = kernels
    if first not in errors:
        return "fp32"
    return next((each for each in later if errors.get(each, 1.0) <= errors[first] / 2), "fp32")


def largest(calls: Sequence[Call]) -> float:
    """The largest magnitude that a layer was given: the range of kernels that have one for all calls."""
    return max((max(-call.low, call.high) for call in calls), default=0.0)


# --- what the kernels compute: each takes a weight `[k, n]` and a range ------------------

_Product = Callable[[Call], Tensor]
_Kernel = Callable[[Tensor, float], _Product]


def _half(dtype: torch.dtype) -> _Kernel:
    """Weights alone: activations that are rounded as well add as much again, far below every limit."""

    def prepare(weight: Tensor, most: float) -> _Product:
        stored = weight.to(dtype).to(torch.float32)
        return lambda call: call.rows @ stored

    return prepare


def _static(eight: str) -> _Kernel:
    """Weights by column and activations in one range, both as the form stores and shows them."""

    def prepare(weight: Tensor, most: float) -> _Product:
        form = StaticRange(eight, largest=most)
        parts, step = form.encode(weight), form.step
        stored = parts[eight].to(torch.float32) * parts["scale"].to(torch.float32)
        return lambda call: (to_eight(call.rows, step, eight).to(torch.float32) * step) @ stored

    return prepare


def _weight_only(bits: int) -> _Kernel:
    """Weights by block, activations as they are."""

    def prepare(weight: Tensor, most: float) -> _Product:
        stored = by_block(weight, bits, block_size(weight.shape[0]), positive=True).dequantized()
        return lambda call: call.rows @ stored

    return prepare


def _dynamic(weight: Tensor, most: float) -> _Product:
    """Weights by column; activations in 255 steps from the call's smallest number to its largest."""
    stored = by_column(weight).dequantized()

    def multiply(call: Call) -> Tensor:
        scale = (max(call.high, 0.0) - min(call.low, 0.0)) / 255 or 1.0
        zero = float(min(max(round(-min(call.low, 0.0) / scale), 0), 255))
        codes = ((call.rows / scale).round() + zero).clamp(0, 255)
        return ((codes - zero) * scale) @ stored

    return multiply


def _by_row(weight: Tensor, most: float) -> _Product:
    """Weights by column; activations in 254 steps, symmetric, in each row."""
    stored = by_column(weight).dequantized()
    return lambda call: _in_blocks(call.rows, call.rows.shape[1]) @ stored


def _blockwise(bits: int) -> _Kernel:
    """Weights by block; activations in 254 steps, symmetric, in the same blocks of each row."""

    def prepare(weight: Tensor, most: float) -> _Product:
        block = block_size(weight.shape[0])
        stored = by_block(weight, bits, block).dequantized()
        return lambda call: _in_blocks(call.rows, block) @ stored

    return prepare


def _in_blocks(rows: Tensor, block: int) -> Tensor:
    """Rows `[r, k]` as 8-bit integers show them, a scale for each block of k."""
    r, k = rows.shape
    padded = torch.nn.functional.pad(rows, (0, -k % block)).reshape(r, -1, block)  # r k -> r blocks block
    scale = (padded.abs().amax(dim=2, keepdim=True) / 127).clamp(min=1e-30)
    return ((padded / scale).round() * scale).reshape(r, -1)[:, :k]


_KERNELS: Final[Mapping[str, _Kernel]] = {
    "fp16": _half(torch.float16),
    "bf16": _half(torch.bfloat16),
    "int8-static": _static("int8"),
    "fp8": _static("float8e4m3fn"),
    "int8-weight": _weight_only(8),
    "int4-weight": _weight_only(4),
    "int8": _dynamic,
    "int8-row": _by_row,
    "int8-block": _blockwise(8),
    "int4-block": _blockwise(4),
}
