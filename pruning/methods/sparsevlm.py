"""Drops visual tokens by the attention of the words that match the image; recycles some of them by merging.

SparseVLM, "Visual Token Sparsification for Efficient Vision-Language Model Inference" (arXiv 2410.04417).

Facts from the official code (v1): raters are the text tokens behind the image whose mean softmax likeness to
the visual tokens, in the decoder's input, is above the mean; after layers 2, 6 and 15 (counted from 0) the
visual tokens are ranked by the mean attention of the raters in that layer, mean over heads, and the best 300,
200 and 110 of 576 stay (on average 192); of the dropped ones the best 30 % (plus one) are clustered by
density peaks into a tenth of their number (plus one), and each cluster's mean stays. ``recycle=false`` leaves
that out, as SparseVLM+ does. Ours: after the first cut the raters are found again with the visual tokens that
are left; nobody above the mean: all text rates; a merged token stands in its cluster's centre (the code
appends it), and survivors keep their positions. A given budget counts the merged tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.attention import MASKED, chunk_masks, count_true, relevance
from foveate.pruning.budget import Budget, floor_count, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.peaks import merge_peaks
from foveate.pruning.selection import Selection, rank, select_mask
from foveate.pruning.spec import MethodConfig, Schedule, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2410.04417"
TITLE = "SparseVLM"
KIND = "training-free"
SCHEDULE: Schedule = ((0.09375, {"share": 0.521}), (0.21875, {"share": 0.3475}), (0.5, {"share": 0.191}))

_NOISE = 1e-6
"""How far above the mean a rater has to be: equal words stay equal."""


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of sparsevlm."""

    share: float = option(
        0.521,
        "visual tokens left, merged ones apart, as a share of those that entered the decoder",
        low=0,
        high=1,
        open_low=True,
    )
    recycle: bool = option(True, "merge the best of the dropped tokens into a few")


class Method(PruningMethod):
    """One cut. Raters, their attention, the best, and the means of what was nearly kept."""

    sites = (Site.DECODER,)
    needs_entered = True
    needs_embedded = True

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the chunk ``[b, s]``; merged tokens in their centres' rows."""
        assert isinstance(evidence, DecoderEvidence)
        assert evidence.entered is not None
        valid, visual = chunk_masks(evidence)
        score, rows = relevance(evidence, raters(evidence, visual), rope_free=False)
        judged = count_true(visual & (rows > 0)) > 0
        size = count_true(visual)
        own = floor_count(evidence.entered, self.config.share)
        own = torch.minimum(torch.maximum(own, torch.ones_like(own)), size)
        if not self.config.recycle:
            count = resolve_count(budget, own, size)
            keep = ~visual | (rank(score, visual) < count.unsqueeze(-1))
            return select_mask(valid & (keep | ~judged.unsqueeze(-1)))
        count = resolve_count(budget, own + clusters(size - own), size)
        merged = torch.minimum(clusters(size - count), torch.maximum(count - 1, torch.zeros_like(count)))
        merged = torch.where(budget.given(), merged, count - own)  # own is at most the rule's count

        best = visual & (rank(score, visual) < (count - merged).unsqueeze(-1))
        dropped = visual & ~best & judged.unsqueeze(-1)
        member = dropped & (rank(score, dropped) < recycled(count_true(dropped)).unsqueeze(-1))
        centre, features = merge_peaks(evidence.hidden, member, torch.where(judged, merged, 0 * merged))
        keep = ~visual | best | centre | ~judged.unsqueeze(-1)
        return select_mask(valid & keep)._replace(features=features)


def raters(evidence: DecoderEvidence, visual: Tensor) -> Tensor:
    """``query_index [b, t]`` with -1 in place of the words that do not match the image."""
    assert evidence.embedded is not None
    index, embedded = evidence.query_index, evidence.embedded.float()
    asked = (index >= 0) & (index < evidence.length.unsqueeze(-1))  # b t
    row = torch.where(asked, index, torch.zeros_like(index))
    words = torch.gather(embedded, 1, row.unsqueeze(-1).expand(-1, -1, embedded.shape[2]))  # b t d
    logits = torch.matmul(embedded, words.transpose(1, 2))  # b s t
    hidden = (~asked).to(logits.dtype).unsqueeze(1) * MASKED
    likeness = torch.softmax(logits + hidden, dim=-1)
    seen = visual.unsqueeze(-1).to(logits.dtype)  # b s 1
    share = torch.where(visual.unsqueeze(-1), likeness, torch.zeros_like(likeness)).sum(dim=1)  # b t
    share = share / torch.clamp(seen.sum(dim=1), min=1.0)
    # Each visual token gives one unit to the words: their mean is one over their number.
    mean = 1.0 / torch.clamp(asked.to(logits.dtype).sum(dim=-1, keepdim=True), min=1.0)
    match = asked & (share > mean + _NOISE)
    match = match | (asked & (count_true(match) == 0).unsqueeze(-1))
    return torch.where(match, index, torch.full_like(index, -1))


def recycled(dropped: Tensor) -> Tensor:
    """How many of ``dropped [b]`` tokens are merged: 30 % and one."""
    return torch.minimum(floor_count(dropped, 0.3) + 1, dropped)


def clusters(dropped: Tensor) -> Tensor:
    """Into how many: a tenth of the merged ones, and one; none where nothing is dropped."""
    return torch.where(dropped > 0, recycled(dropped) // 10 + 1, torch.zeros_like(dropped))
