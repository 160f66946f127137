"""Stage 1: teach the vision encoder to see, patch by patch, and its CLS token to look at objects.

No object mask touches the attention: the patch features are classified, and the pooled CLS state has to name
the (kind, colour) pairs that are present.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from foveate.tools.demo_model.model import cls_scores, pixels, vision_states
from foveate.tools.demo_model.optimizer import Optimizer
from foveate.tools.demo_model.recipe import VisionStage
from foveate.tools.demo_model.scenes import COLORS, GRID, KINDS, Scene, make_crowd, make_scene

PATCHES = GRID * GRID
PAIRS = len(KINDS) * len(COLORS)


class PatchHeads(nn.Module):
    """Throw-away read-outs: kind, colour, row, column per patch; present pairs from the pooled CLS state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(KINDS) + 1 + len(COLORS) + 1 + 2 * GRID)
        self.pair_head = nn.Linear(width, len(KINDS) + PAIRS)

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """Logits of kind `[b, n, 17]`, colour `[b, n, 7]`, row and column `[b, n, GRID]`."""
        sizes = (len(KINDS) + 1, len(COLORS) + 1, GRID, GRID)
        return self.head(self.norm(states[:, 1:])).split(sizes, dim=-1)


def labels(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Kind and colour per patch, int64 `[b, n]` (0: background); present kinds and pairs, `[b, 112]`."""
    kinds = torch.zeros(len(scenes), PATCHES, dtype=torch.long)
    colors = torch.zeros_like(kinds)
    present = torch.zeros(len(scenes), len(KINDS) + PAIRS)
    for index, scene in enumerate(scenes):
        for thing in scene.objects:
            cell = thing.row * GRID + thing.column
            kind, color = KINDS.index(thing.kind), COLORS.index(thing.color)
            kinds[index, cell], colors[index, cell] = kind + 1, color + 1
            present[index, kind] = present[index, len(KINDS) + kind * len(COLORS) + color] = 1
    return kinds, colors, present


def vision_loss(tower: nn.Module, heads: PatchHeads, scenes: Sequence[Scene], background: float) -> Tensor:
    """Patch classification plus naming of the present pairs."""
    states, pooled = vision_states(tower, pixels(scenes))
    kinds, colors, present = labels(scenes)
    kind, color, row, column = (logits.flatten(0, 1) for logits in heads(states))
    weight = torch.where(kinds.flatten() == 0, background, 1.0)
    cells = torch.arange(PATCHES).repeat(len(scenes))
    named = F.cross_entropy(kind, kinds.flatten(), reduction="none")
    named = named + F.cross_entropy(color, colors.flatten(), reduction="none")
    where = F.cross_entropy(row, cells // GRID) + F.cross_entropy(column, cells % GRID)
    pairs = F.binary_cross_entropy_with_logits(heads.pair_head(pooled), present, reduction="none").sum(-1)
    return (named * weight).sum() / weight.sum() + 0.3 * where + 0.1 * pairs.mean()


def batch_of_scenes(stage: VisionStage, step: int) -> list[Scene]:
    """The training scenes of one step; they depend on the step alone."""
    first = stage.seed * 10**7 + step * stage.batch
    make = make_crowd if step < stage.crowded * stage.steps else make_scene
    return [make(first + i, "train") for i in range(stage.batch)]


@torch.no_grad()
def check_vision(tower: nn.Module, heads: PatchHeads, number: int = 200) -> dict[str, float]:
    """Accuracy on validation scenes, and how many objects the best 12 tokens by CLS score hold."""
    scenes = [make_scene(i, "val") for i in range(number)]
    states, _ = vision_states(tower, pixels(scenes))
    kinds, colors, _ = labels(scenes)
    kind, color, row, _ = heads(states)
    shown = kinds > 0
    digit = kinds > len(KINDS) - 10
    result = {
        "kind": (kind.argmax(-1) == kinds)[shown].float().mean().item(),
        "digit": (kind.argmax(-1) == kinds)[digit].float().mean().item(),
        "color": (color.argmax(-1) == colors)[shown].float().mean().item(),
        "row": (row.argmax(-1) == torch.arange(PATCHES) // GRID).float().mean().item(),
    }
    for name, scores in cls_scores(tower, states).items():
        best = torch.zeros_like(shown).scatter(1, scores.topk(12, dim=1).indices, True)
        result[f"found_{name}"] = best[shown].float().mean().item()
    return result


def train_vision(
    tower: nn.Module,
    heads: PatchHeads,
    stage: VisionStage,
    start: int,
    optimizer: Optimizer,
    after_step: Callable[[int, float, dict[str, Any]], None],
) -> None:
    """Run the stage from step `start`; `after_step` gets (steps done, loss, check results or nothing)."""
    for step in range(start, stage.steps):
        loss = vision_loss(tower, heads, batch_of_scenes(stage, step), stage.background_weight)
        loss.backward()
        optimizer.step(step)
        done = step + 1
        checked = check_vision(tower, heads) if done % 200 == 0 or done == stage.steps else {}
        after_step(done, loss.item(), checked)
