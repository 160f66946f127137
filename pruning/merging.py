"""What methods that merge candidates share: where they work, the rows that they compare, counting."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.pruning.evidence import EncoderEvidence, EncoderShape
from foveate.pruning.selection import inverse, select_mask
from foveate.runtime.errors import UsageError

OUTSIDE = -2.0
"""Cosine of a pair that does not exist: below every other."""


def require_grid(name: str, shape: EncoderShape, instead: str) -> tuple[int, int]:
    """Rows and columns of the candidates; refuses encoders whose candidates are not one square of patches.

    Elsewhere candidates are merged already, or some of them are line ends, whose rows are no features and
    must not be averaged with any.

    Raises:
        UsageError: no such grid.
    """
    if shape.grid is None:
        raise UsageError(
            f"Method '{name}' merges neighbours on one grid of patches, and this family's visual tokens are "
            "none: they are merged patches, several tiles, or have line ends among them.",
            found="candidates without one grid",
            wanted="an encoder of one square picture, such as LLaVA-1.5's",
            mend=instead,
        )
    return shape.grid


def reader_layer(shape: EncoderShape) -> int:
    """The encoder layer that reads the features (the last one, where they leave the last)."""
    return min(shape.feature_layer, shape.num_layers - 1)


def writer_layer(shape: EncoderShape) -> int:
    """The encoder layer that writes the features (the first one, where they are the embeddings)."""
    return max(shape.feature_layer - 1, 0)


def require_layer(name: str, layer: int, shape: EncoderShape) -> int:
    """``layer``, if the encoder has it.

    Raises:
        UsageError: it has not.
    """
    if layer >= shape.num_layers:
        raise UsageError(
            f"Method '{name}' asks for encoder layer {layer}.",
            found=f"layer {layer}",
            wanted=f"0 to {shape.num_layers - 1}",
            mend="Choose a layer that the vision encoder has.",
        )
    return layer


def patch_keys(evidence: EncoderEvidence, layer: int) -> Tensor:
    """``[b, n, width]`` float32: the attention keys of the candidates, one patch each, CLS dropped."""
    key = evidence.key[layer].float()
    return key if evidence.cls is None else key[:, 1:]


def unit_rows(rows: Tensor) -> Tensor:
    """``rows [b, n, w]`` at length 1, float32; zero rows stay zero."""
    rows = rows.float()
    return rows / torch.clamp(torch.sqrt((rows * rows).sum(dim=-1, keepdim=True)), min=1e-12)


def cosines(rows: Tensor) -> Tensor:
    """``[b, n, n]``: cosine of every row of ``rows [b, n, w]`` with every other one."""
    unit = unit_rows(rows)
    return torch.matmul(unit, unit.transpose(1, 2))


def places(mask: Tensor) -> Tensor:
    """``[b, n]`` int64: the place of each member of the boolean ``mask [b, n]`` among the members, from 0.

    Of others it means nothing. Sorting counts without a running sum, which not every backend has.
    """
    return inverse(select_mask(mask).order)


def join(target: Tensor, member: Tensor) -> Tensor:
    """``[b, n, n]`` float32, row target, column member: 1 where ``member [b, n]`` joins ``target [b, n]``.

    A product with it adds up what joined: the one-hot form of a scatter, which every backend has.
    """
    n = target.shape[-1]
    index = torch.arange(n, device=target.device).unsqueeze(-1)  # n 1
    return ((target.unsqueeze(1) == index) & member.unsqueeze(1)).to(torch.float32)
