"""The TensorRT bindings that our code is held against: the newest of each line that it supports.

This is the only place that names them; the double's versions and the stubs follow.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bindings:
    """One wheel of the bindings.

    Attributes:
        package, version: as on PyPI.
        line: number of the libraries that it wants, libnvinfer.so.<line>.
    """

    package: str
    version: str
    line: str


NEWEST = Bindings("tensorrt-cu13-bindings", "11.4.0.106", "11")
OLDER = Bindings("tensorrt-cu12-bindings", "10.16.1.11", "10")
ALL = (NEWEST, OLDER)
