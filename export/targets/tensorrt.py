"""NVIDIA TensorRT: standard operators (opset 24), told the way its parser takes them.

`TensorScatter` writes the caches, single-output `Attention` reads them under an explicit additive mask. The
files run on ONNX Runtime, too, and climb the parity ladder there; what only TensorRT knows is put in at build
time, into a copy. What its parser would refuse or misread is rewritten by `foveate.export.rewrites`.
"""

from __future__ import annotations

import onnx_ir as ir

from foveate.export.blocks.attention_ops import OPSET, rotary
from foveate.export.rewrites.additive_mask import add_masks
from foveate.export.rewrites.literals import fold_literals
from foveate.export.rewrites.plain_words import compare_booleans, drop_defaults
from foveate.export.rewrites.sorting import compare_pairs
from foveate.export.targets.portable import HOST_LENGTHS, cached_attention, check_sizes

__all__ = ["HOST_LENGTHS", "OPSET", "cached_attention", "check_sizes", "lower", "rotary"]


def lower(model: ir.Model) -> None:
    """Rewrites what TensorRT does not take or promise, with equal results."""
    fold_literals(model.graph)
    compare_booleans(model)
    drop_defaults(model)
    add_masks(model)
    compare_pairs(model)
