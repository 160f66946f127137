"""Crowded scenes of which a uniformly random part is seen, and questions about what that part shows.

Pruning keeps objects and drops background. Uniformly random subsets of an ordinary scene never look like
that; in a crowd they do: 14 to 26 of 64 tokens show about as many objects as a whole ordinary scene. The
subset is drawn without a look at the scene; only the questions are made afterwards, about objects that are
visible and named without doubt. A scene that leaves nothing to ask is skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from foveate.tools.demo_model.recipe import QuestionStage
from foveate.tools.demo_model.scenes import DIRECTIONS, GRID, Question, Scene, SceneObject, make_crowd

SCENES = 16  # per step
OBJECTS = (18, 34)
KEPT = (14, 26)
ASKED = (6, 3, 3)  # questions about neighbours, other two-hop ones, one-hop ones
_SEEDS = 64  # reserved per step: some crowds leave nothing to ask

Asked = list[list[Question]]


def crowd_batch(stage: QuestionStage, step: int) -> tuple[list[Scene], Asked, Tensor]:
    """The scenes of one step, their questions, and the visible tokens `[b, k]`, ascending."""
    rng = np.random.default_rng([stage.seed, step])
    kept = int(rng.integers(KEPT[0], KEPT[1] + 1))
    scenes: list[Scene] = []
    asked: Asked = []
    index: list[np.ndarray] = []
    seed = stage.seed * 10**7 + step * _SEEDS
    while len(scenes) < SCENES:
        scene = make_crowd(seed, "train", OBJECTS)
        seed += 1
        visible = np.sort(rng.permutation(GRID * GRID)[:kept])
        cells = set(visible.tolist())
        questions = _ask([o for o in scene.objects if o.row * GRID + o.column in cells], rng)
        if questions:
            scenes.append(scene)
            asked.append(questions)
            index.append(visible)
    return scenes, asked, torch.from_numpy(np.stack(index))


def _ask(objects: Sequence[SceneObject], rng: np.random.Generator) -> list[Question]:
    """A dozen questions about `objects`, repeated where there are few; none if nothing is unambiguous."""
    by_kind = _unique(objects, lambda o: o.kind)
    by_color = _unique(objects, lambda o: (o.color, o.family))
    one, two, beside = (
        _one_hop(by_kind, by_color),
        _matches(by_kind, by_color),
        _neighbours(objects, by_color),
    )
    chosen: list[Question] = []
    for pool, number in zip((beside, two, one), ASKED, strict=True):
        source = pool or one or beside or two
        if not source:
            return []
        chosen += [source[i] for i in rng.integers(len(source), size=number)]
    return chosen


def _unique(objects: Sequence[SceneObject], key: Callable[[SceneObject], Hashable]) -> list[SceneObject]:
    count = Counter(key(o) for o in objects)
    return [o for o in objects if count[key(o)] == 1]


def _one_hop(by_kind: Sequence[SceneObject], by_color: Sequence[SceneObject]) -> list[Question]:
    found: list[Question] = []
    for o in by_kind:
        found.append(Question("color", 1, f"What color is the {o.kind}?", o.color, o))
        found.append(Question("where", 1, f"Where is the {o.kind}?", o.quarter, o))
    return found + [Question(o.family, 1, f"{_which(o)} is {o.color}?", o.kind, o) for o in by_color]


def _matches(by_kind: Sequence[SceneObject], by_color: Sequence[SceneObject]) -> list[Question]:
    return [
        Question(f"match_{p.family}", 2, f"{_which(p)} has the color of the {o.kind}?", p.kind, o)
        for o in by_kind
        for p in by_color
        if p.color == o.color and p.family != o.family
    ]


def _neighbours(objects: Sequence[SceneObject], by_color: Sequence[SceneObject]) -> list[Question]:
    by_cell = {(o.row, o.column): o for o in objects}
    found: list[Question] = []
    for o in by_color:
        for name, (dr, dc) in DIRECTIONS.items():
            other = by_cell.get((o.row + dr, o.column + dc))
            if other is not None:
                text = f"What is {name} the {o.color} {o.family}?"
                found.append(Question("beside", 2, text, other.kind, o))
    return found


def _which(thing: SceneObject) -> str:
    return "Which digit" if thing.family == "digit" else "What shape"
