"""Trains DyVTE's gates: may the visual tokens leave behind this layer without changing the answer?

The label is the authors' (their code): with all visual columns closed from the next layer on, the answer's
tokens stay the same and its loss stays below 1.03 times what it was. Where this differs from their recipe:

- every layer's gate learns from every question, instead of one layer drawn for each step; the decoder is
  frozen, so states and labels are computed once and the gates then take many cheap steps over them;
- the loss may also rise by ``slack``: the demo model's losses are so small that 3 % of them is noise;
- AdamW at 1e-3 over many epochs of a small set, instead of 6e-5 over one epoch of 1 % of LLaVA's mix665k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from foveate.pruning.methods.dyvte import Config, Method, question_state
from foveate.pruning.spec import Site
from foveate.tools.demo_model.packed import IGNORED, PackedQuestions, decode_exits
from foveate.tools.demo_model.scenes import Scene
from foveate.tools.demo_model.train_language import right_answers
from foveate.tools.train import trainer
from foveate.tools.train.bench import QUESTIONS, Bench

_CHUNK = 25  # scenes of one pass


@dataclass(frozen=True, kw_only=True)
class Recipe(trainer.Recipe):
    """``batch`` counts questions here.

    Attributes:
        scenes: training scenes, with eight questions each.
        tolerance: by which factor the loss may rise.
        slack: by how much it may rise besides.
    """

    steps: int = 3000
    batch: int = 256
    rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    check_every: int = 300
    check_scenes: int = 200
    scenes: int = 2000
    tolerance: float = 1.03
    slack: float = 0.02


class Exits(NamedTuple):
    """What is known about ``m`` questions and ``e`` layers behind which the image may leave.

    ``seen [e, m, 2 d]``: what the gates read. ``harmless [e, m]``: the label. ``right [e + 1, m]``: whether
    the answer is right after that exit, and at the end without any.
    """

    seen: Tensor
    harmless: Tensor
    right: Tensor


class Trainer(trainer.Trainer):
    """Gates behind every layer but the last."""

    name = "dyvte"
    data = "demo scenes, train split; labels: the model's own answers with and without the image"
    recipe: Recipe

    def __init__(self, bench: Bench, recipe: Recipe) -> None:
        super().__init__(bench, recipe)
        torch.manual_seed(recipe.seed)
        self.gates = {f"l{layer}": _gate(bench) for layer in range(1, bench.shape.num_layers)}
        self.cuts = dict(self.gates)

    def prepare(self, progress: trainer.Report) -> None:
        """Runs the frozen model on all scenes."""
        recipe, parts = self.recipe, []
        chunks = -(-recipe.scenes // _CHUNK)
        for chunk in range(chunks):
            drawn = self.bench.scenes(recipe.seed, chunk, _CHUNK)
            parts.append(self._look(drawn[: recipe.scenes - chunk * _CHUNK]))
            progress("looking at training scenes", chunk + 1, chunks)
        self.known = _joined(parts)
        held_out = self.bench.held_out(recipe.check_scenes)
        starts = range(0, len(held_out), _CHUNK)
        self.held_out = _joined([self._look(held_out[start : start + _CHUNK]) for start in starts])

    def loss(self, step: int) -> Tensor:
        """Cross-entropy of all gates on some training questions."""
        draw = torch.Generator().manual_seed(self.recipe.seed * 10**6 + step)
        pick = torch.randint(self.known.seen.shape[1], (self.recipe.batch,), generator=draw)
        logits = self._logits(self.known.seen[:, pick])  # e m 2
        return F.cross_entropy(logits.flatten(0, 1), self.known.harmless[:, pick].flatten().long())

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Right answers when the first gate that says so lets the image leave; how many layers it stays in.

        With a gate behind every layer but the last. ``agreement``: gates that judge as their label does.
        """
        exits = self.held_out
        logits = self._logits(exits.seen)
        leaves = logits[..., 1] > logits[..., 0]  # e m
        never = torch.ones_like(leaves[:1])
        first = torch.cat([leaves, never]).int().argmax(0)  # m: the first of them
        depth = self.bench.shape.num_layers
        return {
            "right": exits.right.gather(0, first[None]).float().mean().item(),
            "image_in_layers": ((first + 1).float() / depth).mean().item(),
            "right_with_image": exits.right[-1].float().mean().item(),
            "agreement": (leaves == exits.harmless).float().mean().item(),
        }

    def optimizer(self) -> trainer.Steps:
        """AdamW, as the authors use."""
        return trainer.AdamSteps(self.gates.values(), self.recipe)

    def _logits(self, seen: Tensor) -> Tensor:
        """``[e, m, 2]`` of every gate, for ``seen [e, m, 2 d]``."""
        return torch.stack([gate.gate(part) for gate, part in zip(self.gates.values(), seen, strict=True)])

    @torch.no_grad()
    def _look(self, scenes: list[Scene]) -> Exits:
        bench = self.bench
        questions = bench.pack(bench.ask(scenes, QUESTIONS, training=False))
        features = bench.hidden_states(scenes)[bench.feature_layer][:, 1:]
        states, logits = decode_exits(bench.model, features, questions)
        return Exits(
            seen=torch.stack([_seen(state, questions) for state in states]),
            harmless=harmless(logits, questions, self.recipe.tolerance, self.recipe.slack),
            right=torch.stack([right_answers(each, questions).flatten() for each in logits]),
        )


def harmless(logits: list[Tensor], questions: PackedQuestions, tolerance: float, slack: float) -> Tensor:
    """Bool ``[e, m]``: exits that leave the answer's tokens and, about, its loss as they are.

    ``logits`` as `decode_exits` gives them: the last entry is the answer with the image.
    """
    due = questions.targets != IGNORED  # b q a
    *early, full = logits
    limit = tolerance * _losses(full, questions) + slack
    verdicts = []
    for each in early:
        same = ((each.argmax(-1) == full.argmax(-1)) | ~due).all(-1)
        verdicts.append((same & (_losses(each, questions) < limit)).flatten())
    return torch.stack(verdicts)


def _losses(logits: Tensor, questions: PackedQuestions) -> Tensor:
    """Mean cross-entropy ``[b, q]`` of each answer's tokens."""
    targets = questions.targets
    each = F.cross_entropy(
        logits.flatten(0, 2), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(targets.shape)
    return each.sum(-1) / (targets != IGNORED).sum(-1)


def _seen(state: Tensor, questions: PackedQuestions) -> Tensor:
    """What a gate reads, ``[m, 2 d]``, from the states ``[b, q, t, d]`` of the text behind the image."""
    hidden = state.flatten(0, 1)  # b q t d -> m t d
    last = questions.rows[:, :, :1].flatten(0, 1)  # m 1
    place = torch.arange(hidden.shape[1])  # t
    index = torch.where(place <= last, place, torch.full_like(place, -1))  # m t
    return question_state(hidden, index, last)


def _gate(bench: Bench) -> Method:
    method = Method(Config(), Site.DECODER)
    method.build(bench.shape)
    for linear in (method.gate.fc1, method.gate.fc2):
        nn.init.xavier_uniform_(linear.weight)
    return method.requires_grad_(True)


def _joined(parts: list[Exits]) -> Exits:
    return Exits(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))
