"""Averages cells of the patch grid, as a smaller picture would: the baseline that ranks nothing.

VTC-Bench (arXiv 2510.07143) finds that merely shrinking the picture beats many pruning methods at the same
number of tokens. An encoder for pictures of one size cannot be given a smaller one, so this is a
**stand-in**: the picture is encoded whole, and its features are averaged over as many cells as tokens are
asked for. The encoder's time is not saved, and the features have seen full resolution.

Ours: the cells. Bands of rows, as many as the square root of the count says, share the count as evenly as
whole numbers allow, and each is cut into cells of one width (to within a patch). A cell's mean stands in
the place of its middle patch. So any number of tokens is met exactly, and a square number gives square
cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape, ModelShape
from foveate.pruning.merging import require_grid
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, select_mask
from foveate.pruning.spec import MethodConfig, Site, option

SITES = ("encoder",)
PAPER = "baseline, after arXiv 2510.07143"
TITLE = "image downsampling (stand-in)"
KIND = "baseline"


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of downsample."""

    ratio: float = option(0.25, "kept share without a budget", low=0, high=1, open_low=True)


class Method(PruningMethod):
    """Means of cells, each in the place of its middle patch."""

    sites = (Site.ENCODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config
        self.grid = (1, 1)

    def layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """None; refuses candidates without one grid (``UsageError``)."""
        require_grid("downsample", shape, "Use method uniform, which needs no grid.")
        return ()

    def build(self, shape: ModelShape) -> None:
        """Notes the grid; refuses candidates without one (``UsageError``)."""
        self.grid = require_grid("downsample", shape.encoder, "Use method uniform, which needs no grid.")

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``, rows averaged."""
        assert isinstance(evidence, EncoderEvidence)
        index = torch.arange(evidence.tile.shape[1], device=evidence.tile.device).expand_as(evidence.tile)
        size = torch.ones_like(index).sum(dim=-1)
        count = resolve_count(budget, ratio_count(self.config.ratio, size), size)
        cell, middle = cells(index, count, self.grid)
        same = (cell.unsqueeze(2) == cell.unsqueeze(1)).to(torch.float32)  # b n n
        rows = evidence.features.float()
        mean = torch.matmul(same, rows) / same.sum(dim=-1, keepdim=True)
        return select_mask(middle)._replace(features=mean.to(evidence.features.dtype))


def cells(index: Tensor, count: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cell of each patch ``index [b, n]`` (raster), and whether it is its cell's middle, ``[b, n]`` each.

    ``count [b]`` cells, from 1 to all patches, numbered in raster order.
    """
    rows, columns = grid
    row, column, count = index // columns, index % columns, count.unsqueeze(-1)  # b n, b n, b 1
    bands = _bands(count, rows, columns)
    band = row * bands // rows
    first, behind = band * count // bands, (band + 1) * count // bands
    across = behind - first  # cells in this band, 1 to all columns
    inside = column * across // columns
    middle = (row == _middle(band, bands, rows)) & (column == _middle(inside, across, columns))
    return first + inside, middle


def _bands(count: Tensor, rows: int, columns: int) -> Tensor:
    """``[b, 1]``: bands of rows for square cells, sqrt(count rows / columns), rounded half up."""
    each = torch.arange(1, rows + 1, device=count.device)
    half = 2 * each - 1  # a number of bands is reached from half a band below it on
    bands = (half * half * columns <= 4 * rows * count).to(torch.int64).sum(dim=-1, keepdim=True)
    fewest = (count + columns - 1) // columns  # a band has no more cells than columns
    bands = torch.maximum(bands, fewest)
    return torch.minimum(torch.minimum(bands, count), torch.zeros_like(bands) + rows)


def _middle(part: Tensor, parts: Tensor, size: int) -> Tensor:
    """The middle of the places whose ``place * parts // size`` is ``part``; the lower of two."""
    first, behind = (part * size + parts - 1) // parts, ((part + 1) * size + parts - 1) // parts
    return (first + behind - 1) // 2
