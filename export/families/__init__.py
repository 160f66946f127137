"""One file per family, named as `model_type` in config.json; each has the names of `Family`, in its order."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

from torch import Tensor, nn

from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderEvidence, EncoderShape
from foveate.runtime.errors import CheckpointError


@dataclass(frozen=True)
class Facts:
    """What a family supports: `foveate families` and docs/families.md are made of it.

    Attributes:
        title: the name that people use.
        checkpoints: examples of published checkpoints.
        text_models: `model_type`s of the text model.
        scores: encoder scores that the family can serve; the first is its default.
        default_plan: the methods of an export that names none.
        images: most images of a prompt; 0 is no limit.
        video: how videos are read; empty for not at all.
        position_axes: 1, or 3 for (time, row, column).
        position_modes: what visual tokens may do after the encoder's cut; the first is the default.
        visual_tokens: how many an image has, in words.
        differs: what transformers does for this family and Foveate does not, one sentence each.
    """

    title: str
    checkpoints: tuple[str, ...]
    text_models: tuple[str, ...]
    scores: tuple[str, ...]
    default_plan: tuple[str, ...]
    visual_tokens: str
    images: int = 0
    video: str = ""
    position_axes: int = 1
    position_modes: tuple[str, ...] = ("compact", "original")
    differs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


class Family(Protocol):
    """What a family module provides. `config` is an object of its own `Config`."""

    FACTS: Facts
    Config: type[Any]

    def encoder_shape(self, config: Any) -> EncoderShape:
        """What methods have to know about the encoder."""

    def Vision(self, config: Any, layers: tuple[int, ...], *, pooled: bool) -> VisionModule:  # noqa: N802
        """The encoder up to the features, with the queries and keys of `layers` as evidence."""

    def Connector(self, config: Any) -> nn.Module:  # noqa: N802
        """Kept feature rows `[k, c]` to decoder rows `[k, d]` (DeepStack: `[k, (1 + levels) * d]`)."""

    def vision_inputs(self, config: Any) -> tuple[TensorSpec, ...]:
        """The vision graph's inputs: pixels, geometry. A first axis "batch" takes several items at once."""

    def candidates(self, config: Any) -> int | str:
        """Visual tokens of an item: a number, or "tokens" where it depends on the item."""

    def runtime_facts(self, config: Any) -> dict[str, Any]:
        """What the runtime's module of the same name has to know (JSON)."""

    def rename_weight(self, name: str) -> str:
        """A checkpoint's tensor name to the graphs' name."""

    def is_unused(self, config: Any, name: str) -> bool:
        """Whether a renamed tensor belongs to the model but not to the graphs."""

    def constants(self, config: Any) -> dict[str, Tensor]:
        """Parameters that are computed, not stored, besides those of the text model."""


class VisionModule(Protocol):
    """A family's encoder: `feeds` holds the tensors of `vision_inputs` by name."""

    def __call__(self, feeds: dict[str, Tensor], *extra: Tensor) -> EncoderEvidence:
        """`extra` `[m, w]`, at most one: tokens that run along, where the encoder has taps."""
        ...


def list_families() -> tuple[str, ...]:
    """Returns the supported `model_type`s."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_family(name: str) -> Family:
    """Returns the module of a supported family."""
    return cast(Family, importlib.import_module(f"foveate.export.families.{name}"))


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
            mend="see docs/families.md for what is supported and how a family is added",
        )
    return name, load_family(name)
