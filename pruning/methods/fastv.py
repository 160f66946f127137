"""Keeps the visual tokens that the last prompt token attends to most, after two decoder layers.

FastV, "An Image is Worth 1/2 Tokens After Layer 2" (arXiv 2403.06764). Facts from the official code: before
layer K (2 by default, counted from 0) the image tokens are ranked by the attention that the last prompt token
gave them in layer K - 1, mean over heads; the best R stay, in raster order, with their original positions.
The paper's text averages over all rows instead (``query=all``; the authors' answer in issue 14). Half of the
tokens at K = 2 is the paper's headline setting. The choice is made once, while the prompt is read (issue 13).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.pruning.attention import chunk_masks, count_true, keep_visual, query_rows, relevance
from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection
from foveate.pruning.spec import MethodConfig, Schedule, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2403.06764"
TITLE = "FastV"
KIND = "training-free"
SCHEDULE: Schedule = ((2, {}),)


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of fastv; the defaults are the official code's."""

    ratio: float = option(0.5, "kept share of the visual tokens that arrive", low=0, high=1, open_low=True)
    query: str = option("last", "rows whose attention counts", choices=("last", "text", "all"))


class Method(PruningMethod):
    """Ranks visual tokens by the attention of the layer that ran last; text is never touched.

    With ``query=text`` or ``all``, a token's score is the mean over the rows that can see it. A chunk without
    visual tokens, or without a row that asks, is left alone.
    """

    sites = (Site.DECODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the chunk ``[b, s]``."""
        assert isinstance(evidence, DecoderEvidence)
        visual = chunk_masks(evidence)[1]
        score, rows = relevance(evidence, query_rows(evidence, self.config.query), rope_free=False)
        size = count_true(visual)
        count = resolve_count(budget, ratio_count(self.config.ratio, size), size)
        return keep_visual(evidence, score, count, count_true(visual & (rows > 0)) > 0)
