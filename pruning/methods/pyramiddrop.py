"""Drops visual tokens in stages of depth, by the attention of the last instruction token.

PyramidDrop (arXiv 2410.17247). Facts from the official code: after layers 8, 16 and 24 of 32 the visual
tokens are cut to 1/2, 1/4 and 1/8 of those that entered (rounded down), ranked by the attention that the last
instruction token gives them, mean over heads; raster order stays. The code takes that attention from the
layer that runs *next*, on the hidden states of all tokens; here it is that of the layer that ran last, which
is already there. The code numbers positions anew after each cut; here survivors keep theirs. And here at
least one token stays, as with every method that ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.pruning.attention import chunk_masks, count_true, keep_visual, query_rows, relevance
from foveate.pruning.budget import Budget, floor_count, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection
from foveate.pruning.spec import MethodConfig, Schedule, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2410.17247"
TITLE = "PyramidDrop"
KIND = "training-free"
SCHEDULE: Schedule = ((0.25, {"share": 0.5}), (0.5, {"share": 0.25}), (0.75, {"share": 0.125}))


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of pyramiddrop."""

    share: float = option(
        0.5, "visual tokens left, as a share of those that entered the decoder", low=0, high=1, open_low=True
    )
    query: str = option("last", "rows whose attention counts", choices=("last", "text"))


class Method(PruningMethod):
    """One stage. Never keeps more than arrive; a chunk without visual tokens or question is left alone."""

    sites = (Site.DECODER,)
    needs_entered = True

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the chunk ``[b, s]``."""
        assert isinstance(evidence, DecoderEvidence)
        assert evidence.entered is not None
        visual = chunk_masks(evidence)[1]
        score, rows = relevance(evidence, query_rows(evidence, self.config.query), rope_free=False)
        count = resolve_count(budget, floor_count(evidence.entered, self.config.share), count_true(visual))
        return keep_visual(evidence, score, count, count_true(visual & (rows > 0)) > 0)
