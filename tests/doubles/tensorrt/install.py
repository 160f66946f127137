"""Putting the double in the place of `tensorrt`, as one of the two lines of versions.

A test takes the fixture `tensorrt` of doubles/fixtures.py; a child process puts tests/ and
tests/doubles/path on PYTHONPATH, where a `tensorrt` lies that calls `module`.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import doubles.tensorrt as double
from doubles.tensorrt import device, engine, enums
from doubles.tensorrt.version import set_version

VERSIONS = ("11.4.0.106", "10.16.1.11")
# Names of the double that only one line has; members as "Class.member".
ONLY_11 = {"AttentionIOForm", "CausalMaskKind", "IAttention.causal_kind"}

# One object for the whole process: polygraphy keeps the first that it meets.
_module = types.ModuleType("tensorrt", double.__doc__)
_module.__file__, _module.__path__ = double.__file__, []  # type: ignore[attr-defined]
_module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)


def module(version: str = VERSIONS[0]) -> types.ModuleType:
    """The double as a module of a version."""
    set_version(version)
    ten = version.startswith("10.")
    for name in [name for name in vars(_module) if not name.startswith("__")]:
        delattr(_module, name)
    for name in double.__all__:
        if not (ten and name in ONLY_11):
            setattr(_module, name, getattr(double, name))
    if ten:
        for name, kind in enums.OF_10.items():
            setattr(_module, name, kind)
    _module.__version__ = version  # type: ignore[attr-defined]
    return _module


def install(monkeypatch: Any, version: str = VERSIONS[0]) -> types.ModuleType:
    """Put the double into sys.modules for as long as `monkeypatch` says."""
    made = module(version)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    if version.startswith("10."):
        for owner, member in (name.split(".") for name in ONLY_11 if "." in name):
            monkeypatch.delattr(getattr(double, owner), member)
    engine.violations.clear()
    device.set_capability(None)
    return made
