"""Numerics of quantised weights: to integers and scales, and back.

Symmetric, without calibration: an integer times its scale. `W` is `[k, n]`, inputs by outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# Below any weight that matters; keeps columns of zeros from dividing by zero.
_SMALLEST_SCALE: Final = 1e-20
# Shrinking the range clips the largest weights and resolves the others better; the best of these is taken.
_SHRINKS: Final = (1.0, 0.92, 0.84)
# Weights quantised at a time: their temporaries stay in a core's cache, which halves the time of 4 bits.
_CHUNK: Final = 1 << 18


@dataclass(frozen=True)
class Quantized:
    """Integers and scales.

    Attributes:
        codes: int8 `[k, n]`.
        scale: float32 `[n]`, or `[ceil(k / block), n]` with one scale for each block of inputs.
        block: inputs that share a scale; None where all do.
    """

    codes: Tensor
    scale: Tensor
    block: int | None = None

    def dequantized(self) -> Tensor:
        """`W` as the kernels understand it, float32 `[k, n]`."""
        codes = self.codes.to(torch.float32)
        if self.block is None:
            return codes * self.scale
        return codes * self.scale.repeat_interleave(self.block, dim=0)[: codes.shape[0]]


def by_column(weight: Tensor) -> Quantized:
    """8 bits, one scale for each output: the largest weight of a column becomes 127."""
    scale = (weight.abs().amax(dim=0) / 127).clamp(min=_SMALLEST_SCALE)
    codes = (weight / scale).round_().clamp_(-127, 127).to(torch.int8)
    return Quantized(codes, scale)


def by_block(weight: Tensor, bits: int, block: int, *, positive: bool = False) -> Quantized:
    """`bits` (4 or 8), a scale for each `block` inputs of an output.

    4 bits use all of -8..7: the scale has the sign that makes the largest weight -8. Of a few ranges the one
    with the least squared error is taken, for each block. `positive` is for runtimes that know no other
    scales: there the largest weight of a block becomes -8 or 7.
    """
    k, n = weight.shape
    blocks = -(-k // block)
    codes = torch.empty(k, n, dtype=torch.int8)
    scale = torch.empty(blocks, n)
    step = max(1, _CHUNK // k)
    for first in range(0, n, step):
        some = weight[:, first : first + step].to(torch.float32)
        if blocks * block > k:
            some = torch.cat([some, some.new_zeros(blocks * block - k, some.shape[1])])
        found, scales = _best(
            some.reshape(blocks, block, -1), bits, positive
        )  # (blocks block) n -> blocks block n
        codes[:, first : first + step] = found.reshape(blocks * block, -1)[:k]
        scale[:, first : first + step] = scales
    return Quantized(codes, scale, block)


def _best(weight: Tensor, bits: int, positive: bool) -> tuple[Tensor, Tensor]:
    """Integers int8 `[blocks, block, n]` and scales `[blocks, n]`."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    largest = weight.gather(1, weight.abs().argmax(dim=1, keepdim=True))  # blocks 1 n, with its sign
    # A divisor of the largest weight's own sign makes a positive scale.
    full = largest / torch.where((largest > 0) & positive, highest, lowest)
    full = torch.where(full.abs() < _SMALLEST_SCALE, _SMALLEST_SCALE, full)
    codes = scale = error = None
    for shrink in _SHRINKS if bits < 8 else _SHRINKS[:1]:
        tried = full * shrink
        rounded = (weight / tried).round_().clamp_(lowest, highest)
        off = (rounded * tried - weight).square_().sum(dim=1, keepdim=True)
        if codes is None or scale is None or error is None:
            codes, scale, error = rounded, tried, off
            continue
        better = off < error
        codes = torch.where(better, rounded, codes)
        scale, error = torch.where(better, tried, scale), torch.where(better, off, error)
    assert codes is not None
    assert scale is not None
    return codes.to(torch.int8), scale[:, 0]


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two 4-bit values in a byte along the last axis, the first in the low half: uint8 of half the width."""
    wide = (codes.to(torch.int16) & 0xF).to(torch.uint8)
    if wide.shape[-1] % 2:
        wide = torch.nn.functional.pad(wide, (0, 1))
    return wide[..., 0::2] | (wide[..., 1::2] << 4)


def by_output(found: Quantized, bits: int) -> Tensor:
    """Blocks as `MatMulNBits` reads them, output by output: uint8 `[n, blocks, block * bits / 8]`."""
    assert found.block is not None
    blocks, n = found.scale.shape
    padding = blocks * found.block - found.codes.shape[0]
    codes = torch.nn.functional.pad(found.codes, (0, 0, 0, padding)).t().reshape(n, blocks, found.block)
    # Stored without a sign, counted from the middle.
    plain = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    return pack_nibbles(plain) if bits == 4 else plain
