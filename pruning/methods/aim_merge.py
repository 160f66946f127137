"""Merges the most alike patches, round by round, until the budget is met; drops nothing outright.

The merging half of AIM (arXiv 2412.03248, ICCV 2025), as it is used on single pictures; ``aim-rank`` is its
pruning half, in the decoder. Facts, from the official code: before the connector; each round parts what is
left into even and odd places, finds for every even one the odd one with the largest cosine of attention
keys (raw projections of the layer that reads the features), and the best r pairs are merged: an odd row
becomes the plain mean of itself and of all that joined it, and so does its key. No sizes are tracked, so
later rounds take means of means. Published for LLaVA-1.5: 576 to 288 to 252 (43.75 %), and 576 to 288 to
144 to 72 (12.5 %).

Ours: any budget. Every round but the last merges all that it can, half of what is left (rounded down); the
last one what is still too much: the published numbers come out. Rows stay in raster order between the
rounds, too; the code puts unmerged ones first, which matters only where a round that is not the last has an
odd number of rows. The number of rounds is fixed when the graph is made, and rounds that have nothing to do
do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape, ModelShape
from foveate.pruning.merging import (
    OUTSIDE,
    cosines,
    join,
    patch_keys,
    places,
    reader_layer,
    require_grid,
    require_layer,
)
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, rank, select_mask
from foveate.pruning.spec import MethodConfig, Site, option

SITES = ("encoder",)
PAPER = "arXiv 2412.03248"
TITLE = "AIM, merging"
KIND = "training-free"


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of aim-merge."""

    ratio: float = option(0.4375, "kept share without a budget: 252 of 576", low=0, high=1, open_low=True)
    metric: str = option("key", "attention keys, or the features themselves", choices=("key", "feature"))
    layer: int | None = option(None, "metric=key: encoder layer (none = the reader of the features)", low=0)

    def __post_init__(self) -> None:
        """Refuses a layer without effect (``UsageError``)."""
        super().__post_init__()
        self.uses("layer", metric="key")


class Method(PruningMethod):
    """Rounds of merging between even and odd places."""

    sites = (Site.ENCODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config
        self.rounds = 0

    def layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """The layer whose keys are compared; none for ``metric=feature``.

        Raises:
            UsageError: an encoder without one grid of patches, or without that layer.
        """
        require_grid("aim-merge", shape, "Use method divprune or uniform, which merge nothing.")
        if self.config.metric == "feature":
            return ()
        layer = reader_layer(shape) if self.config.layer is None else self.config.layer
        return (require_layer("aim-merge", layer, shape),)

    def build(self, shape: ModelShape) -> None:
        """Counts the halvings from all candidates down to one."""
        rows, columns = require_grid("aim-merge", shape.encoder, "Use method divprune or uniform.")
        self.rounds = (rows * columns - 1).bit_length()

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``, rows merged."""
        assert isinstance(evidence, EncoderEvidence)
        rows = evidence.features.float()
        key = rows
        if self.config.metric == "key":
            (layer,) = evidence.key
            key = patch_keys(evidence, layer)
        alive = torch.ones_like(evidence.tile) > 0  # b n
        size = torch.ones_like(evidence.tile).sum(dim=-1)
        count = resolve_count(budget, ratio_count(self.config.ratio, size), size)
        for _ in range(self.rounds):
            joined = merge_once(key, alive, count)  # b target member
            number = 1 + joined.sum(dim=-1, keepdim=True)  # b n 1
            rows = (rows + torch.matmul(joined, rows)) / number
            # A key that is a row is merged as one.
            key = rows if self.config.metric == "feature" else (key + torch.matmul(joined, key)) / number
            alive = alive & (joined.sum(dim=1) == 0)
        return select_mask(alive)._replace(features=rows.to(evidence.features.dtype))


def merge_once(key: Tensor, alive: Tensor, count: Tensor) -> Tensor:
    """One round over the rows ``alive [b, n]``: who joins whom, ``[b, n, n]``, row target, column member.

    ``key [b, n, w]`` are compared; no more are merged than leave ``count [b]``, nor more than half.
    """
    place = places(alive)
    source, target = alive & (place % 2 == 0), alive & (place % 2 == 1)
    left = alive.to(torch.int64).sum(dim=-1)
    excess = torch.minimum(left - count, left // 2)  # b, may be 0
    likeness = cosines(key)
    likeness = torch.where(target.unsqueeze(1), likeness, torch.full_like(likeness, OUTSIDE))
    merged = source & (rank(likeness.amax(dim=-1), source) < excess.unsqueeze(-1))
    return join(likeness.argmax(dim=-1), merged)
