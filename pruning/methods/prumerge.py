"""Keeps the patches that CLS singles out, merged with their neighbours, and one token for the rest.

LLaVA-PruMerge and PruMerge+ (arXiv 2403.15388, ICCV 2025), as the official code computes them.

Facts, from the code: CLS similarity over the raw projections of the layer that reads the features, heads
not split; upper outliers by the interquartile rule, so each image has its own count; each of them adds its
32 nearest tokens by key cosine, kept ones among them, weighted with their raw CLS shares, itself with 1;
one extra token is the weighted sum of everything dropped. ``plus=true`` adds every g-th patch, g from the
number of outliers. (The paper's text says clustering of the pruned tokens and a weighted average.)

Ours: statistics per image (the code takes them over the whole batch), at least one outlier, g at least 1,
raster order (the code leaves the order of scores), the extra token in the place of the last dropped patch,
and how a given budget is met: see ``_by_budget``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape
from foveate.pruning.knee import iqr
from foveate.pruning.merging import (
    OUTSIDE,
    cosines,
    patch_keys,
    places,
    reader_layer,
    require_grid,
    require_layer,
)
from foveate.pruning.method import PruningMethod
from foveate.pruning.methods.cls_knee import cls_full
from foveate.pruning.selection import Selection, inverse, select_mask, sort_scores
from foveate.pruning.spec import KneeConfig, MethodConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("encoder",)
PAPER = "arXiv 2403.15388"
TITLE = "LLaVA-PruMerge, PruMerge+"
KIND = "training-free"

_TINY = 1e-37
"""Probabilities from here down lose digits in float32, or are 0; their logarithms still rank them."""


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of prumerge."""

    plus: bool = option(False, "PruMerge+: patches at even distances as well")
    neighbours: int = option(32, "nearest tokens that are merged into each kept one", low=0)
    layer: int | None = option(None, "encoder layer (none = the reader of the features)", low=0)


class Method(PruningMethod):
    """Outliers of the CLS curve, nearest neighbours added to each, one extra token for the rest."""

    sites = (Site.ENCODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """The one layer whose queries and keys are compared.

        Raises:
            UsageError: an encoder without CLS, without one grid of patches, or without that layer.
        """
        if not shape.has_cls:
            raise UsageError(
                "Method 'prumerge' compares patches with the CLS token, and this vision encoder has none.",
                found="an encoder without CLS",
                wanted="an encoder with CLS on one square picture, such as LLaVA-1.5's CLIP",
                mend="Use method saliency-knee, with knee=iqr for the same outliers.",
            )
        require_grid("prumerge", shape, "Use method cls-knee with knee=iqr: the same outliers, not merged.")
        layer = reader_layer(shape) if self.config.layer is None else self.config.layer
        return (require_layer("prumerge", layer, shape),)

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``, rows merged."""
        assert isinstance(evidence, EncoderEvidence)
        score, finer = (evidence.pool(each) for each in cls_full(evidence))  # b n
        finer = torch.where(score > _TINY, torch.zeros_like(finer), finer)
        curve, index = sort_scores(score, finer)
        place = inverse(index)  # b n: 0 = most alike to CLS
        size = torch.ones_like(index).sum(dim=-1)
        given = budget.given()
        count = resolve_count(budget, size, size)
        own, asked = self._by_outliers(curve, place), self._by_budget(place, count)
        # Not torch.where: ONNX Runtime's takes no booleans.
        centre = (asked & given.unsqueeze(-1)) | (own & ~given.unsqueeze(-1))  # b n

        (layer,) = evidence.key
        near = nearest(cosines(patch_keys(evidence, layer)), self.config.neighbours)
        rows = evidence.features.float()
        weight = torch.where(near, score.unsqueeze(1), torch.zeros_like(score.unsqueeze(1)))  # b n n
        merged = rows + torch.matmul(weight, rows)
        rest = torch.where(centre, torch.zeros_like(score), score).unsqueeze(1)  # b 1 n
        extra = torch.matmul(rest, rows)  # b 1 c
        slot = self._slot(centre, given & (count == 1))
        features = torch.where(slot.unsqueeze(-1), extra, merged)
        untouched = (given & (count == size)).reshape(-1, 1, 1)
        features = torch.where(untouched, rows, features).to(evidence.features.dtype)
        return select_mask(centre | slot)._replace(features=features)

    def _by_outliers(self, curve: Tensor, place: Tensor) -> Tensor:
        """The paper's rule, ``[b, n]``: upper outliers and, for plus, every g-th patch but the last one."""
        n = curve.shape[1]
        size = torch.zeros_like(place[:, 0]) + n
        outliers = iqr(curve, size, KneeConfig())
        centre = place < outliers.unsqueeze(-1)
        if not self.config.plus:
            return centre
        gap = size // outliers // 3
        gap = torch.where(gap < 1, torch.ones_like(gap), gap).unsqueeze(-1)  # b 1
        index = torch.arange(n, device=place.device)
        return centre | ((index % gap == 0) & (index < n - 1))

    def _by_budget(self, place: Tensor, count: Tensor) -> Tensor:
        """``[b, n]``: as many centres as leave room for the extra token, where there is one.

        plus: a quarter by score, as a rule of thumb of the paper's own counts; the others stand at even
        distances among the patches that are left.
        """
        n = place.shape[1]
        single = (count > 1) & (count < n)
        centres = count - single.to(torch.int64)
        if not self.config.plus:
            return place < centres.unsqueeze(-1)
        best = ((centres + 3) // 4).unsqueeze(-1)  # b 1
        top = place < best
        spread, left = centres.unsqueeze(-1) - best, n - best  # b 1
        step = places(~top)  # b n: place among the patches that are left
        left = torch.where(left < 1, torch.ones_like(left), left)
        even = (step + 1) * spread // left > step * spread // left
        return top | even

    @staticmethod
    def _slot(centre: Tensor, alone: Tensor) -> Tensor:
        """``[b, n]``: the last patch that is no centre, where the extra token goes; none if ``alone [b]``."""
        n = centre.shape[1]
        index = torch.arange(n, device=centre.device).expand_as(centre)  # b n
        last = torch.where(centre, torch.full_like(index, -1), index).amax(dim=-1, keepdim=True)
        return (index == last) & ~centre & ~alone.unsqueeze(-1)


def nearest(likeness: Tensor, number: int) -> Tensor:
    """``[b, n, n]``: for each row the ``number`` others most alike by ``likeness [b, n, n]``.

    Of equals the lower index. One sort: the last of the chosen says how alike, and up to which index among
    equals, the others are.
    """
    n = likeness.shape[-1]
    index = torch.arange(n, device=likeness.device)
    itself = index.unsqueeze(-1) == index  # n n
    if number == 0:
        return itself.expand_as(likeness) & False
    score = torch.where(itself, torch.full_like(likeness, OUTSIDE), likeness)
    curve, order = sort_scores(score)
    last = torch.zeros_like(order[:, :, :1]) + (number - 1)
    end = torch.where(last < n, last, torch.zeros_like(last) + (n - 1))  # fewer others than wanted: all
    edge, where = torch.gather(curve, 2, end), torch.gather(order, 2, end)  # b n 1
    return ((score > edge) | ((score == edge) & (index <= where))) & ~itself
