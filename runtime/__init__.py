"""Runs a bundle: opens it, prepares prompts and images, and generates, without torch.

>>> import foveate.runtime
>>> pipeline = foveate.runtime.load("bundle")                                   # doctest: +SKIP
>>> pipeline.generate("What is this?", images=["cat.jpg"]).text                 # doctest: +SKIP

Everything public is imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveate.runtime.bundle import Bundle, BundleWriter

_HOME = {
    "Bundle": "foveate.runtime.bundle",
    "BundleWriter": "foveate.runtime.bundle",
}

__all__ = ["Bundle", "BundleWriter"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'foveate.runtime' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
