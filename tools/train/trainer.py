"""What a method brings to the training loop: its weights, its loss, and how it is examined."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveate.pruning.method import PruningMethod
from foveate.tools.demo_model.optimizer import Optimizer
from foveate.tools.train.bench import Bench

Report = Callable[[str, int, int], None]  # called as progress(what, done, total)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the weights that come out; methods subclass it and set their own defaults.

    Attributes:
        seed: of the first weights, and of which training scenes are drawn.
        steps: gradient steps.
        batch: scenes of a step.
        rate: highest learning rate.
        warmup: steps until it is reached; it then falls as half a cosine.
        weight_decay: of both optimisers.
        check_every: steps between two looks at the validation scenes.
        check_scenes: how many scenes those are.
    """

    seed: int = 1
    steps: int = 500
    batch: int = 12
    rate: float = 2e-3
    warmup: int = 20
    weight_decay: float = 0.0
    check_every: int = 50
    check_scenes: int = 60

    def to_dict(self) -> dict[str, Any]:
        """Every field, for the adapter's metadata and for comparing two runs."""
        return dataclasses.asdict(self)


class Steps(Protocol):
    """An optimiser as the loop uses it."""

    def step(self, number: int) -> None:
        """Applies and clears the gradients of step ``number``, counted from 0."""

    def state_dict(self) -> Any:
        """What ``load_state_dict`` takes."""

    def load_state_dict(self, state: Any) -> None:
        """Restores."""


class AdamSteps:
    """AdamW with a warm-up and half a cosine down to nothing."""

    def __init__(self, modules: Iterable[nn.Module], recipe: Recipe) -> None:
        self.recipe = recipe
        self.weights = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.weights, lr=recipe.rate, weight_decay=recipe.weight_decay)

    def step(self, number: int) -> None:
        """Applies the gradients, no longer than 1 all together."""
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        warm = min(1.0, (number + 1) / max(self.recipe.warmup, 1))
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, number / self.recipe.steps)))
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.rate * warm * fall
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> Any:
        """What AdamW remembers."""
        return self.adam.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Restores what ``state_dict`` gave."""
        self.adam.load_state_dict(state)


class Trainer(ABC):
    """Base of ``Trainer`` in each method's file.

    Every batch must depend on the recipe and the step alone: a run that was stopped and resumed then gives
    the weights of one that was not.

    Attributes:
        name: the word that users type.
        data: one line about what is trained on, for the adapter's metadata.
        cuts: the method at each of its cuts, by the cut's name in the graphs (``encoder``, ``l2``, ...), its
            weights made, drawn and with gradients.
    """

    name: str
    data: str

    def __init__(self, bench: Bench, recipe: Recipe) -> None:
        self.bench, self.recipe = bench, recipe
        self.cuts: dict[str, PruningMethod] = {}

    def prepare(self, progress: Report) -> None:  # noqa: B027
        """What is computed once, before the first step; nothing by default."""

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """Loss of batch ``step`` (from 0), a scalar with gradients to the weights of ``cuts``."""

    @abstractmethod
    def check(self) -> dict[str, float]:
        """Figures on validation scenes; the first one is drawn as the curve. Runs without gradients."""

    def optimizer(self) -> Steps:
        """Muon for matrices and AdamW for the rest, as the demo model was trained with."""
        recipe, parts = self.recipe, dict[str, nn.Module](self.cuts)
        return Optimizer(parts, recipe.rate, recipe.warmup, recipe.steps, recipe.weight_decay)

    def params(self) -> dict[str, Mapping[str, Any]]:
        """The options that each cut was trained with."""
        return {cut: dict(method.config.to_dict()) for cut, method in self.cuts.items()}  # type: ignore[operator,union-attr]

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The adapter's tensors: parameters under ``<cut>.<parameter>``, oriented as in the graphs."""
        return {
            f"{cut}.{name}": value.detach().to(dtype).clone()
            for cut, method in self.cuts.items()
            for name, value in method.named_parameters()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what ``tensors`` gave."""
        for cut, method in self.cuts.items():
            for name, value in method.named_parameters():
                value.copy_(tensors[f"{cut}.{name}"])
