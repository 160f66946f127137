"""Stage 2: projector and decoder learn to answer from the frozen encoder's features.

First captions, then questions. The decoder sees all visual tokens, or uniformly random subsets of them;
nothing that knows the scene ever chooses visual tokens. In half of the batches with all tokens their
positions are closed up at random, as if some were missing, so that places have to be read from the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveate.tools.demo_model.crowds import crowd_batch
from foveate.tools.demo_model.model import pixels, vision_states
from foveate.tools.demo_model.optimizer import Optimizer
from foveate.tools.demo_model.packed import (
    IGNORED,
    PackedQuestions,
    answer_logits,
    decode,
    pack,
    pack_captions,
)
from foveate.tools.demo_model.recipe import CaptionStage, QuestionStage
from foveate.tools.demo_model.scenes import (
    COLORS,
    GRID,
    KINDS,
    QUESTION_KINDS,
    TEST_QUOTA,
    TRAIN_QUOTA,
    Question,
    Scene,
    make_crowd,
    make_scene,
)

AfterStep = Callable[[int, float, dict[str, Any]], None]
Features = Callable[[list[Scene]], Tensor]


class Whitening:
    """Centres the features and evens out their variances, so that faint attributes are as easy to read.

    Measured on fixed training scenes with an object in every cell: on ordinary ones the background's variance
    would drown where the objects are. `fold` moves it into the projector, so the checkpoint has no such step.
    """

    def __init__(self, tower: nn.Module, scenes: int = 100, floor: float = 0.5) -> None:
        everywhere = (GRID * GRID, GRID * GRID)
        with torch.no_grad():
            drawn = [make_crowd(seed, "train", everywhere) for seed in range(scenes)]
            states = vision_states(tower, pixels(drawn))[0][:, 1:].flatten(0, 1)  # [b * n, c]
            values, vectors = torch.linalg.eigh(torch.cov(states.T))
        self.mean = states.mean(0)
        self.matrix = (vectors * (values + floor) ** -0.5) @ vectors.T  # [c, c]

    def __call__(self, features: Tensor) -> Tensor:
        """Whiten `[..., c]`."""
        return (features - self.mean) @ self.matrix

    @torch.no_grad()
    def fold(self, linear: nn.Linear) -> None:
        """Make `linear` take raw features where it took whitened ones."""
        linear.weight.copy_(linear.weight @ self.matrix.T)
        linear.bias.sub_(linear.weight @ self.mean)


def features_of(tower: nn.Module, whitening: Whitening) -> Features:
    """Whitened visual features `[b, n, c]` of scenes, without gradients."""

    def features(scenes: list[Scene]) -> Tensor:
        with torch.no_grad():
            return whitening(vision_states(tower, pixels(scenes))[0][:, 1:])

    return features


def language_loss(logits: Tensor, questions: PackedQuestions) -> Tensor:
    """Cross-entropy over the answer tokens."""
    return F.cross_entropy(logits.flatten(0, 2), questions.targets.flatten(), ignore_index=IGNORED)


def right_answers(logits: Tensor, questions: PackedQuestions) -> Tensor:
    """Whether greedy decoding would give exactly the answer and stop, bool `[b, q]`."""
    hit = (logits.argmax(-1) == questions.targets) | (questions.targets == IGNORED)
    return hit.all(-1)


class MiddleHead(nn.Module):
    """Throw-away read-out of a middle layer: the object that a question's first look-up is about."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, len(KINDS) + len(COLORS) + 2 * GRID)

    def loss(self, states: Tensor, asked: Sequence[Sequence[Question]], stage: QuestionStage) -> Tensor:
        """Cross-entropy of kind, colour, row and column, from states `[b, q, w]`."""
        things = [question.about for image in asked for question in image]
        truth = [(KINDS.index(t.kind), COLORS.index(t.color), t.row, t.column) for t in things if t]
        logits = self.head(self.norm(states)).flatten(0, 1)
        parts = logits.split((len(KINDS), len(COLORS), GRID, GRID), dim=-1)
        losses = [F.cross_entropy(p, t) for p, t in zip(parts, torch.tensor(truth).T, strict=True)]
        return stage.name_weight * (losses[0] + losses[1]) + stage.place_weight * (losses[2] + losses[3])


def batch_of_scenes(stage: CaptionStage | QuestionStage, step: int) -> list[Scene]:
    """The training scenes of one step; they depend on the step alone."""
    first = stage.seed * 10**7 + step * stage.batch
    return [make_scene(first + i, "train") for i in range(stage.batch)]


def random_subset(stage: CaptionStage | QuestionStage, step: int, count: int) -> Tensor:
    """A uniformly random part of the visual tokens, bool `[b, n]`; its size is random per step."""
    rng = np.random.default_rng([stage.seed, step])
    share = rng.uniform(*stage.subset_keep)
    ranks = torch.from_numpy(rng.random((stage.batch, count))).argsort(1).argsort(1)
    return ranks < max(1, round(share * count))


@torch.no_grad()
def check_language(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: Features,
    number: int = 64,
) -> dict[str, float]:
    """Accuracy on validation scenes with all visual tokens, by kind of question and overall."""
    scenes = [make_scene(i, "val") for i in range(number)]
    asked = [scene.ask(TEST_QUOTA, 8) for scene in scenes]
    questions = pack(tokenizer, asked)
    right = right_answers(answer_logits(model, features(scenes), questions), questions)
    kinds = [[question.kind for question in image] for image in asked]
    result = {"all": right.float().mean().item()}
    for kind in QUESTION_KINDS:
        mask = torch.tensor([[k == kind for k in row] for row in kinds])
        result[kind] = right[mask].float().mean().item()
    return result


def train_captions(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    stage: CaptionStage,
    start: int,
    optimizer: Optimizer,
    features: Features,
    after_step: AfterStep,
) -> None:
    """Run the caption stage from step `start`; `after_step` gets (steps done, loss, nothing)."""
    for step in range(start, stage.steps):
        scenes = batch_of_scenes(stage, step)
        captions = pack_captions(tokenizer, scenes, stage.variants, hops=1 if step < stage.easy else 2)
        seen = features(scenes)
        positions = None if step % 2 == 0 else random_subset(stage, step, seen.shape[1]).cumsum(1) - 1
        loss = language_loss(answer_logits(model, seen, captions, positions=positions), captions)
        loss.backward()
        optimizer.step(step)
        after_step(step + 1, loss.item(), {})


def train_questions(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    head: MiddleHead,
    stage: QuestionStage,
    start: int,
    optimizer: Optimizer,
    features: Features,
    after_step: AfterStep,
) -> None:
    """Run the question stage from step `start`; `after_step` gets (steps done, loss, checks or nothing)."""
    for step in range(start, stage.steps):
        turns = stage.late if step >= stage.late_from * stage.steps else stage.early
        turn = turns[step % len(turns)]
        keep = positions = None
        asked: Sequence[Sequence[Question]]
        if turn == "crowd":
            scenes, asked, index = crowd_batch(stage, step)
            seen = features(scenes)
            seen = seen.gather(1, index[..., None].expand(-1, -1, seen.shape[2]))  # b n c -> b k c
        else:
            scenes = batch_of_scenes(stage, step)
            asked = [scene.ask(TRAIN_QUOTA, stage.questions) for scene in scenes]
            seen = features(scenes)
        questions = pack(tokenizer, asked)
        if turn == "subset":
            keep = random_subset(stage, step, seen.shape[1])
        elif turn == "closed":
            positions = random_subset(stage, step, seen.shape[1]).cumsum(1) - 1
        logits, middle = decode(model, seen, questions, keep, positions, middle=stage.middle)
        loss = language_loss(logits, questions)
        total = loss if keep is not None else loss + head.loss(middle, asked, stage)
        total.backward()
        optimizer.step(step)
        done = step + 1
        checked = check_language(model, tokenizer, features) if done % 100 == 0 else {}
        after_step(done, loss.item(), checked)
