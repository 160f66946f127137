"""ONNX Runtime on CUDA: the operators of target onnxruntime, in half precision.

`GroupQueryAttention` has no float32 kernel there. Who wants float32 on CUDA exports target portable. It reads
the longest row's length on the host: where that is given to the graph, nothing goes from the GPU to the host,
and a decoding step can be recorded.
"""

from __future__ import annotations

from typing import Final

from foveate.export.targets.onnxruntime import OPSET, cached_attention, check_sizes, lower, rotary

__all__ = ["HOST_LENGTHS", "OPSET", "cached_attention", "check_sizes", "lower", "rotary"]

HOST_LENGTHS: Final = True
