"""Keeps visual tokens at even distances: the baseline that looks at nothing.

Every paper's ranking has to beat it, and at mild ratios many do not (UniPruneBench, arXiv 2511.02650, and
VTC-Bench, arXiv 2510.07143, on baselines of this kind).

On one grid of patches the order is that of ordered dithering (Bayer's matrix): a quarter of the tokens is
every second row and column, a half is a checkerboard, and any other number lies in between; a smaller
budget keeps a subset of a larger one. Elsewhere (several tiles, line ends, inside the decoder) tokens stand
at even distances along the sequence. Both keep exactly as many as asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.evidence import ROLE_VISUAL, DecoderEvidence, EncoderEvidence, ModelShape
from foveate.pruning.merging import places
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, select_mask, select_top
from foveate.pruning.spec import MethodConfig, Site, option

SITES = ("encoder", "decoder")
PAPER = "baseline"
TITLE = "uniform grid"
KIND = "baseline"


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of uniform."""

    ratio: float = option(0.25, "kept share without a budget", low=0, high=1, open_low=True)
    pattern: str = option(
        "grid",
        "even over rows and columns, where there is a grid, or along the line",
        choices=("grid", "line"),
    )


class Method(PruningMethod):
    """Ranks by place alone."""

    sites = (Site.ENCODER, Site.DECODER)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config
        self.grid: tuple[int, int] | None = None

    def build(self, shape: ModelShape) -> None:
        """Notes the grid of candidates, where the encoder has one."""
        if self.site is Site.ENCODER and self.config.pattern == "grid":
            self.grid = shape.grid

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates (encoder) or over the chunk (decoder: text as ever)."""
        if isinstance(evidence, DecoderEvidence):
            place = torch.arange(evidence.token_role.shape[1], device=evidence.token_role.device)  # s
            valid = place < evidence.length.unsqueeze(-1)  # b s
            visual = valid & (evidence.token_role == ROLE_VISUAL)
            size = visual.to(torch.int64).sum(dim=-1)
            return select_mask(valid & (~visual | spaced(places(visual), size, self._count(budget, size))))
        index = torch.arange(evidence.tile.shape[1], device=evidence.tile.device).expand_as(evidence.tile)
        size = torch.ones_like(index).sum(dim=-1)
        count = self._count(budget, size)
        if self.grid is None:
            return select_mask(spaced(index, size, count))
        return select_top(-dither(index, self.grid), count)

    def _count(self, budget: Budget, size: Tensor) -> Tensor:
        return resolve_count(budget, ratio_count(self.config.ratio, size), size)


def spaced(place: Tensor, size: Tensor, count: Tensor) -> Tensor:
    """``[b, n]``: ``count [b]`` of the places 0 to ``size [b]`` - 1, each in the middle of a stretch."""
    size, count = torch.where(size < 1, torch.ones_like(size), size).unsqueeze(-1), count.unsqueeze(-1)  # b 1
    before = (place * count + size // 2) // size
    return ((place + 1) * count + size // 2) // size > before


def dither(index: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rank ``[b, n]`` of the cells ``index [b, n]`` (raster) of ``grid`` in Bayer's matrix; no two are equal.

    The lowest bits of row and column decide first: cells of one value there are as far apart as can be.
    """
    row, column = index // grid[1], index % grid[1]
    value = torch.zeros_like(index)
    for _ in range((max(grid) - 1).bit_length()):
        value = value * 4 + (row + column) % 2 * 2 + row % 2
        row, column = row // 2, column // 2
    return value
