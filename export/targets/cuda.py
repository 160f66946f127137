"""ONNX Runtime on CUDA: the operators of target onnxruntime, in half precision.

`GroupQueryAttention` has no float32 kernel there. Who wants float32 on CUDA exports target portable.
"""

from __future__ import annotations

from foveate.export.targets.onnxruntime import OPSET, cached_attention, check_sizes, lower, rotary

__all__ = ["OPSET", "cached_attention", "check_sizes", "lower", "rotary"]
