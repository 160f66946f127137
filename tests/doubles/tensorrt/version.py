"""Which TensorRT the double stands for."""

from __future__ import annotations

_version = "11.4.0.106"


def version() -> str:
    return _version


def set_version(number: str) -> None:
    global _version
    _version = number
