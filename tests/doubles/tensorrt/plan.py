"""A plan of the double: a header that says for what it was built, the ONNX bytes, and a checksum.

It can be read on the machine and by the version that it was built for, and on others only as the
compatibility options allow (tensorrt.md A.3, G.2).
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from typing import Any

from doubles.tensorrt import device

MAGIC = b"TRTDOUBLE1"
Triple = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass
class Header:
    """What is known without the graph; shapes and values are (min, opt, max) by input, for every profile."""

    version: str
    capability: tuple[int, int]
    name: str = ""
    hardware: str = "NONE"
    version_compatible: bool = False
    lean_runtime: bool = True
    weight_streaming: bool = False
    refittable: bool = False
    verbosity: str = "LAYER_NAMES_ONLY"
    weights: int = 0
    aux_streams: int = 0
    shapes: list[dict[str, Triple]] = field(default_factory=list)
    values: list[dict[str, Triple]] = field(default_factory=list)


def write_plan(header: Header, model: bytes) -> bytes:
    head = json.dumps(asdict(header)).encode()
    body = MAGIC + struct.pack("<QQ", len(head), len(model)) + head + model
    return body + hashlib.sha256(body).digest()


def read_plan(data: bytes, version: str, host_code: bool) -> tuple[Header, bytes] | str:
    """Header and ONNX bytes, or the sentence with which TensorRT refuses the plan."""
    start = len(MAGIC) + 16
    if data[: len(MAGIC)] != MAGIC:
        return "Magic tag does not match: this is not a serialized engine"
    if len(data) < start or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        return "Serialization assertion failed: the engine is truncated or was changed"
    head, model = struct.unpack("<QQ", data[len(MAGIC) : start])
    header = _header(json.loads(data[start : start + head]))
    if header.version != version:
        if not header.version_compatible:
            wanted = f"expecting library version {version} got {header.version}"
            return f"The engine plan file is not compatible with this version of TensorRT, {wanted}"
        if not host_code:
            return "A version compatible engine holds host code: set engine_host_code_allowed on the runtime"
    if not _fits(header):
        built, here = (".".join(map(str, pair)) for pair in (header.capability, device.capability()))
        return (
            f"The engine plan file is generated on an incompatible device: compute {built} got compute {here}"
        )
    return header, data[start + head : start + head + model]


def _header(read: dict[str, Any]) -> Header:
    for key in ("shapes", "values"):
        read[key] = [{n: tuple(map(tuple, three)) for n, three in entry.items()} for entry in read[key]]
    return Header(**{**read, "capability": tuple(read["capability"])})


def _fits(header: Header) -> bool:
    if header.hardware == "AMPERE_PLUS":
        return device.capability() >= (8, 0)
    return header.capability == device.capability()
