"""Trains SeTok's cluster merger. The clustering has no weights: the encoder's features decide it.

The authors train in three stages: tokenizer with a reconstructing decoder on pictures, then connectors and
language model on captions, then instructions. None of that fits a frozen model: see ``merging``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.methods.setok import Config, Method, start
from foveate.pruning.spec import Site
from foveate.tools.train import merging
from foveate.tools.train.bench import Bench, no_budget


@dataclass(frozen=True, kw_only=True)
class Recipe(merging.Recipe):
    """How the merger is trained: numbers of rows around the method's own."""


class Trainer(merging.Trainer):
    """The merger at the encoder."""

    name = "setok"
    recipe: Recipe

    def __init__(self, bench: Bench, recipe: Recipe) -> None:
        super().__init__(bench, recipe)
        torch.manual_seed(recipe.seed)
        self.method = Method(Config(), Site.ENCODER)
        self.method.build(bench.shape)
        start(self.method)
        self.method.requires_grad_(True)
        self.cuts = {"encoder": self.method}

    def merge(
        self, states: dict[int, Tensor], asked: Tensor, noise: torch.Generator | None
    ) -> merging.Merged:
        """Merged clusters of every item; the same with and without ``noise``: nothing is drawn."""
        patches = states[self.bench.feature_layer][:, 1:]
        budget = no_budget(len(asked))._replace(keep_tokens=asked)
        selection, owner = self.method.cluster(patches, budget)
        most = int(selection.count.max())
        slot = selection.order[:, :most]  # b k
        rows = self.method.merge(patches, owner).gather(
            1, slot.unsqueeze(-1).expand(-1, -1, patches.shape[2])
        )
        used = torch.arange(most) < selection.count.unsqueeze(-1)
        return merging.Merged(rows, used, owner.unsqueeze(1) == slot.unsqueeze(-1))
