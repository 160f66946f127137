"""Trains QueCC's compressor in front of the frozen connector and decoder.

The authors train it as LLaVA-1.5 is trained: 558,000 captions with the connector, then 665,000 conversations
with the language model too. Scaled down, and different where the model cannot move:

- connector and language model are frozen, so the tokens must look like features that they know;
- therefore a warm start: for ``warm`` cheap steps a tile's token is drawn to the feature of the patch in it
  that the frozen decoder, given all patches, looks at most for this question;
- then the answers' cross-entropy, on tens of thousands of questions rather than a million conversations;
- Muon and AdamW, as for the demo model, instead of AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from foveate.pruning.blocks import LayerNorm, Linear, start_linear, start_norm
from foveate.pruning.methods.quecc import Config, Method
from foveate.pruning.spec import Site
from foveate.tools.demo_model.optimizer import Optimizer
from foveate.tools.demo_model.packed import answer_logits, looked_at
from foveate.tools.demo_model.scenes import Question, Scene
from foveate.tools.demo_model.train_language import language_loss, right_answers
from foveate.tools.train import trainer
from foveate.tools.train.bench import QUESTIONS, Bench


@dataclass(frozen=True, kw_only=True)
class Recipe(trainer.Recipe):
    """How the compressor is trained.

    Attributes:
        stride: side of a tile in patches; 0 for the method's own.
        warm: steps of the warm start, among ``steps``; each phase has a schedule of its own.
        questions: per scene.
    """

    steps: int = 1000
    batch: int = 5
    check_every: int = 100
    check_scenes: int = 40
    stride: int = 0
    warm: int = 200
    questions: int = 12


class Trainer(trainer.Trainer):
    """The compressor at the encoder."""

    name = "quecc"
    data = "demo scenes, train split, with their answers"
    recipe: Recipe

    def __init__(self, bench: Bench, recipe: Recipe) -> None:
        super().__init__(bench, recipe)
        torch.manual_seed(recipe.seed)
        self.method = _drawn(bench, recipe)
        self.cuts = {"encoder": self.method}
        self._said: dict[str, Tensor] = {}

    def prepare(self, progress: trainer.Report) -> None:
        """The spread of the features, by which the warm start weighs them."""
        states = self.bench.hidden_states(self.bench.scenes(self.recipe.seed, -1, 100))
        self.spread = states[self.bench.feature_layer][:, 1:].flatten(0, 1).std(0)  # c

    def loss(self, step: int) -> Tensor:
        """Distance to the patches that are looked at, or cross-entropy of the answers."""
        return self._warm(step) if step < self.recipe.warm else self._answers(step)

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Right answers of validation scenes, and those about what stands beside something."""
        scenes = self.bench.held_out(self.recipe.check_scenes)
        asked = self.bench.ask(scenes, QUESTIONS, training=False)
        right = torch.cat(
            [self._right(scenes[i : i + 20], asked[i : i + 20]) for i in range(0, len(scenes), 20)]
        )
        beside = torch.tensor([question.kind == "beside" for image in asked for question in image])
        return {"right": right.float().mean().item(), "right_beside": right[beside].float().mean().item()}

    def optimizer(self) -> trainer.Steps:
        """One for the warm start, and a fresh one behind it."""
        warm, parts = self.recipe.warm, dict[str, nn.Module](self.cuts)
        sizes = {0: max(warm, 1), warm: max(self.recipe.steps - warm, 1)}
        recipe = self.recipe
        return Phases(
            {
                first: Optimizer(parts, recipe.rate, recipe.warmup, steps, recipe.weight_decay)
                for first, steps in sizes.items()
            }
        )

    def _warm(self, step: int) -> Tensor:
        bench, method = self.bench, self.method
        scenes = bench.scenes(self.recipe.seed, step, self.recipe.batch)
        asked = bench.ask(scenes, min(self.recipe.questions, QUESTIONS), training=False)
        tokens, states = self._tokens(scenes, asked)
        features = states[bench.feature_layer][:, 1:]
        looked = looked_at(bench.model, features, bench.pack(asked)).flatten(0, 1)  # b q n -> (b q) n
        best = method.tiles(looked.unsqueeze(-1)).argmax(dim=2, keepdim=True)  # (b q) k 1 1
        patches = method.tiles(features.repeat_interleave(len(asked[0]), 0))  # (b q) k p c
        wanted = patches.gather(2, best.expand(-1, -1, -1, patches.shape[-1]))[:, :, 0]  # (b q) k c
        return F.mse_loss(tokens / self.spread, wanted / self.spread)

    def _answers(self, step: int) -> Tensor:
        recipe = self.recipe
        scenes = self.bench.scenes(recipe.seed, 10**5 + step, recipe.batch)
        asked = self.bench.ask(scenes, recipe.questions, training=True)
        questions = self.bench.pack(asked).unpack()
        return language_loss(
            answer_logits(self.bench.model, self._tokens(scenes, asked)[0], questions), questions
        )

    def _right(self, scenes: list[Scene], asked: list[tuple[Question, ...]]) -> Tensor:
        questions = self.bench.pack(asked).unpack()
        logits = answer_logits(self.bench.model, self._tokens(scenes, asked)[0], questions)
        return right_answers(logits, questions).flatten()

    def _tokens(
        self, scenes: list[Scene], asked: list[tuple[Question, ...]]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Tokens ``[b q, k, c]`` of every scene for each of its questions; the encoder's states."""
        states, each = self.bench.hidden_states(scenes), len(asked[0])
        many = {i: state.repeat_interleave(each, 0) for i, state in states.items()}
        evidence = self.bench.evidence(many, self.method.chosen, self._text(asked))
        return self.method.compress(evidence), states

    def _text(self, asked: list[tuple[Question, ...]]) -> Tensor:
        """Text features ``[b q, d]``; there are about a hundred different questions."""
        questions = [question for image in asked for question in image]
        new = list(
            {question.text: question for question in questions if question.text not in self._said}.values()
        )
        if new:
            self._said |= dict(zip([q.text for q in new], self.bench.text_states(new), strict=True))
        return torch.stack([self._said[question.text] for question in questions])


class Phases:
    """Optimisers one after another; each counts its steps from where it begins."""

    def __init__(self, parts: dict[int, Optimizer]) -> None:
        self.parts = parts

    def step(self, number: int) -> None:
        """Applies the gradients by the optimiser whose phase it is."""
        first = max(begin for begin in self.parts if begin <= number)
        self.parts[first].step(number - first)

    def state_dict(self) -> list[Any]:
        """Of all of them."""
        return [part.state_dict() for part in self.parts.values()]

    def load_state_dict(self, state: list[Any]) -> None:
        """Restores what ``state_dict`` gave."""
        for part, own in zip(self.parts.values(), state, strict=True):
            part.load_state_dict(own)


def _drawn(bench: Bench, recipe: Recipe) -> Method:
    """The method with first values from torch's generator."""
    method = Method(Config(stride=recipe.stride or None), Site.ENCODER)
    method.build(bench.shape)
    for module in method.modules():
        if isinstance(module, Linear):
            start_linear(module)
        elif isinstance(module, LayerNorm):
            start_norm(module)
    nn.init.constant_(method.conv, 1 / len(method.conv))  # a tile's mean
    nn.init.zeros_(method.conv_bias)
    return method.requires_grad_(True)
