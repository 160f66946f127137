"""What vistog and setok have in common when they are trained: rows that merge patches, a frozen model behind.

Connector and language model cannot move, so merged rows must look like features that they know. Therefore a
warm start: for some cheap steps a row is drawn to the most salient patch that it merged (most CLS attention;
the encoder's own, no look at the scene), as the connector sees both. Then the answers' cross-entropy through
the frozen decoder. How many rows an item gets varies from step to step, so that budgets work.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from foveate.tools.demo_model.model import cls_scores
from foveate.tools.demo_model.packed import PackedQuestions, answer_logits
from foveate.tools.demo_model.scenes import Scene
from foveate.tools.demo_model.train_language import language_loss, right_answers
from foveate.tools.train import trainer
from foveate.tools.train.bench import QUESTIONS

ANSWERS_FROM = 10**6  # the scenes of the warm start are not those of the steps with questions
CHECKED = 30  # validation scenes at a time


@dataclass(frozen=True, kw_only=True)
class Recipe(trainer.Recipe):
    """How the merging layers are trained.

    Attributes:
        warm: steps of the warm start, among ``steps``.
        warm_batch: scenes of such a step.
        questions: per scene, behind the warm start.
        varied: share of the steps with another number of rows than the method's own.
        fewest: such a step has as many rows at least.
        most: and as many at most.
    """

    steps: int = 850
    batch: int = 20
    check_every: int = 200
    warm: int = 200
    warm_batch: int = 40
    questions: int = 6
    varied: float = 0.5
    fewest: int = 6
    most: int = 32


class Merged(NamedTuple):
    """``rows [b, k, c]``, those in use ``[b, k]``, which patches each of them merged ``[b, k, n]``."""

    rows: Tensor
    used: Tensor
    members: Tensor


class Trainer(trainer.Trainer):
    """A method at the encoder that merges patches."""

    data = "demo scenes, train split, with their answers"
    recipe: Recipe

    @abstractmethod
    def merge(self, states: dict[int, Tensor], asked: Tensor, noise: torch.Generator | None) -> Merged:
        """Merged rows of the encoder's states; ``asked`` int64 ``[b]`` rows, 0 the method's own number.

        With ``noise`` as it trains, without as it will run.
        """

    def loss(self, step: int) -> Tensor:
        """Distance to salient patches, or cross-entropy of the answers."""
        return self._warm(step) if step < self.recipe.warm else self._answers(step)

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Right answers of validation scenes with the method's own number of rows, that number, with 8."""
        right, rows = self.examine(self.recipe.check_scenes)
        few = self.examine(self.recipe.check_scenes, tokens=8)[0]
        return {"right": right.float().mean().item(), "rows": rows, "right_8": few.float().mean().item()}

    @torch.no_grad()
    def examine(self, number: int, split: str = "val", tokens: int = 0) -> tuple[Tensor, float]:
        """Right or wrong, bool ``[scenes, questions]``, and the mean number of rows; the test's questions."""
        right, rows = [], []
        scenes = self.bench.held_out(number, split)
        for start in range(0, number, CHECKED):
            part = scenes[start : start + CHECKED]
            questions = self.bench.pack(self.bench.ask(part, QUESTIONS, training=False))
            merged = self.merge(self.bench.hidden_states(part), torch.full((len(part),), tokens), None)
            right.append(right_answers(self._logits(merged, questions), questions))
            rows.append(merged.used.sum(dim=1))
        return torch.cat(right), torch.cat(rows).float().mean().item()

    def _warm(self, step: int) -> Tensor:
        scenes = self.bench.scenes(self.recipe.seed, step, self.recipe.warm_batch)
        states, merged = self._merged(scenes, step)
        last = states[self.bench.feature_layer]
        salient = cls_scores(self.bench.model.model.vision_tower, last)["cls_mean"].unsqueeze(1)  # b 1 n
        best = torch.where(merged.members, salient, -1.0).argmax(dim=2, keepdim=True)  # b k 1
        wanted = last[:, 1:].gather(1, best.expand(-1, -1, last.shape[2]))  # b k c
        connector = self.bench.model.model.multi_modal_projector
        filled = merged.used & merged.members.any(dim=2)
        return F.mse_loss(connector(merged.rows)[filled], connector(wanted)[filled])

    def _answers(self, step: int) -> Tensor:
        scenes = self.bench.scenes(self.recipe.seed, ANSWERS_FROM + step, self.recipe.batch)
        questions = self.bench.pack(self.bench.ask(scenes, self.recipe.questions, training=True))
        return language_loss(self._logits(self._merged(scenes, step)[1], questions), questions)

    def _merged(self, scenes: list[Scene], step: int) -> tuple[dict[int, Tensor], Merged]:
        """The encoder's states and the merged rows, as step ``step`` has them."""
        recipe, states = self.recipe, self.bench.hidden_states(scenes)
        noise = torch.Generator().manual_seed(recipe.seed * 10**7 + step)
        most = max(recipe.fewest, recipe.most)
        tokens = int(torch.randint(recipe.fewest, most + 1, (1,), generator=noise))
        varied = torch.rand(1, generator=noise).item() < recipe.varied
        asked = torch.full((len(scenes),), tokens if varied else 0)
        return states, self.merge(states, asked, noise)

    def _logits(self, merged: Merged, questions: PackedQuestions) -> Tensor:
        return answer_logits(self.bench.model, merged.rows, questions, merged.used)
