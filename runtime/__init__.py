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
    from foveate.runtime.chat import Chat
    from foveate.runtime.generate import Generation, Prefill, Token, TokenStream
    from foveate.runtime.options import Budget, GenerateOptions
    from foveate.runtime.pipeline import Pipeline, Request, load
    from foveate.runtime.report import PruningReport, SiteReport, Timings
    from foveate.runtime.scheduler import Handle, Scheduler

_HOME = {
    # the bundle
    "Bundle": "bundle",
    "BundleWriter": "bundle",
    # asking
    "Budget": "options",
    "Chat": "chat",
    "GenerateOptions": "options",
    "Pipeline": "pipeline",
    "Request": "pipeline",
    "load": "pipeline",
    # asking much at once
    "Handle": "scheduler",
    "Scheduler": "scheduler",
    # answers
    "Generation": "generate",
    "Prefill": "generate",
    "PruningReport": "report",
    "SiteReport": "report",
    "Timings": "report",
    "Token": "generate",
    "TokenStream": "generate",
}

__all__ = [
    "Budget",
    "Bundle",
    "BundleWriter",
    "Chat",
    "GenerateOptions",
    "Generation",
    "Handle",
    "Pipeline",
    "Prefill",
    "PruningReport",
    "Request",
    "Scheduler",
    "SiteReport",
    "Timings",
    "Token",
    "TokenStream",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'foveate.runtime' has no attribute '{name}'")
    return getattr(importlib.import_module(f"foveate.runtime.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
