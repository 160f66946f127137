"""One file per family, named as `model_type` in config.json; each has the names of `Family`, in its order."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol, cast

from torch import Tensor

from foveate.export.stage import Stage
from foveate.pruning.plan import PruningPlan
from foveate.runtime.errors import CheckpointError


class Family(Protocol):
    """What a family module provides."""

    Config: type[Any]

    def stages(self, config: Any, plan: PruningPlan, target: ModuleType) -> dict[str, tuple[Stage, ...]]:
        """The graphs of each layout."""

    def rename_weight(self, name: str) -> str:
        """A checkpoint's tensor name to the graphs' name."""

    def is_unused(self, config: Any, name: str) -> bool:
        """Whether a renamed tensor belongs to the model but not to the graphs."""

    def tied_weights(self, config: Any) -> dict[str, str]:
        """Parameters that share another one's tensor."""

    def constants(self, config: Any) -> dict[str, Tensor]:
        """Parameters that are computed, not stored."""


def list_families() -> tuple[str, ...]:
    """Returns the supported `model_type`s."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_family(config: Mapping[str, Any]) -> tuple[str, Family]:
    """Returns name and module of the family that `config.json` asks for.

    Raises:
        CheckpointError: unknown `model_type`; lists the known ones.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in list_families():
        raise CheckpointError(
            "this model_type is not supported",
            found=repr(name),
            wanted=f"one of {', '.join(list_families())}",
            mend="see docs/families.md for what is planned and how a family is added",
        )
    return str(name), cast(Family, importlib.import_module(f"foveate.export.families.{name}"))
