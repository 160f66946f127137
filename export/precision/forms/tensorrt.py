"""Standard operators whose types say what TensorRT, which is strongly typed, shall compute in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from foveate.export.precision.form import Form
from foveate.export.precision.typed_forms import BlockWeight, StaticRange, TypedHalf

FORMS: Final[Mapping[str, Form]] = {
    "fp16": TypedHalf("float16"),
    "bf16": TypedHalf("bfloat16"),
    "int8-static": StaticRange("int8"),
    "fp8": StaticRange("float8e4m3fn"),
    "int4-weight": BlockWeight(),
}
