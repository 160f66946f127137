"""From a cut in the plan to the torch module that chooses."""

from __future__ import annotations

from typing import Any

from foveate.pruning.plan import CutSpec
from foveate.pruning.registry import find_method


def build_method(cut: CutSpec) -> Any:
    """Returns the pruning module of a cut, its options checked.

    Raises:
        UsageError: unknown method or option.
    """
    module = find_method(cut.method)
    return module.Method(module.Config.from_dict(dict(cut.params)), cut.site)
