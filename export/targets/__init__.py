"""How abstract operations become nodes: a file per target, all with the same names.

`OPSET`, `check_sizes`, `rotary`, `cached_attention`, and `lower`, which rewrites a traced graph.
`HOST_LENGTHS`: whether a segment's graph is given the length of its longest row, because the target's
attention reads that on the host; worked out in the graph, it would have to be waited for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Final

from foveate.runtime.errors import UsageError

LAYOUTS: Final = ("fused", "segmented")
_LAYOUTS: Final[Mapping[str, tuple[str, ...]]] = {"cuda": ("segmented",), "tensorrt": ("segmented",)}


def default_layouts(name: str) -> tuple[str, ...]:
    """The layouts that are exported for a target when nobody names one: on GPUs no data-dependent shapes."""
    return _LAYOUTS.get(name, LAYOUTS)


def list_targets() -> tuple[str, ...]:
    """Returns the names of the targets."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_target(name: str) -> ModuleType:
    """Returns the module of a target; raises `UsageError` listing the known ones."""
    if name not in list_targets():
        raise UsageError("unknown target", found=repr(name), wanted=f"one of {', '.join(list_targets())}")
    return importlib.import_module(f"foveate.export.targets.{name}")
