"""ONNX Runtime's CUDA kernels: half-precision products, and weights in blocks of few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from foveate.export.precision.form import Form
from foveate.export.precision.typed_forms import NBitsWeight, TypedHalf

FORMS: Final[Mapping[str, Form]] = {
    "fp16": TypedHalf("float16"),
    "bf16": TypedHalf("bfloat16"),
    "int8-weight": NBitsWeight(8),
    "int4-weight": NBitsWeight(4),
}
