"""From a cut in the plan to the torch module that chooses."""

from __future__ import annotations

from typing import Any

from foveate.pruning.evidence import ModelShape
from foveate.pruning.plan import CutSpec
from foveate.pruning.registry import find_method


def build_method(cut: CutSpec, shape: ModelShape | None = None) -> Any:
    """Returns the pruning module of a cut, its options checked; with `shape`, with its weights.

    Raises:
        UsageError: unknown method or option, or a method that cannot work with such a model.
    """
    module = find_method(cut.method)
    method = module.Method(module.Config.from_dict(dict(cut.params)), cut.site)
    if shape is not None:
        method.build(shape)
        method.requires_grad_(False)
    return method
