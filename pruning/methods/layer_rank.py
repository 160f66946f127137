"""Keeps a given share of the visual tokens at each layer, ranked by the layer before: G-Search and P-Sigmoid.

Both methods of arXiv 2412.00556 search a keep rate for every layer, once per model (``foveate search``),
and then run this rule. Paper facts: the ranking of visual tokens by attention is nearly the same in all
layers but the first, tokens of a layer are ranked by the layer before it, and what is dropped stays dropped.
Reconstruction (no code is public): the score is the attention from all text behind the image, mean over heads
and rows; a rate counts against the tokens that entered the decoder, rounded to the nearest, at least one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foveate.pruning.attention import chunk_masks, count_true, keep_visual, query_rows, relevance
from foveate.pruning.budget import Budget, resolve_count, scaled_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection
from foveate.pruning.spec import MethodConfig, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2412.00556"
TITLE = "G-Search / P-Sigmoid"
KIND = "searched"


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of layer-rank; ``foveate search`` finds the shares."""

    share: float = option(
        0.5, "visual tokens left, as a share of those that entered the decoder", low=0, high=1
    )
    query: str = option("text", "rows whose attention counts", choices=("text", "last"))


class Method(PruningMethod):
    """One step of a schedule. Never keeps more than arrive; a chunk without visual tokens is left alone."""

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
        count = resolve_count(budget, scaled_count(evidence.entered, self.config.share), count_true(visual))
        return keep_visual(evidence, score, count, count_true(visual & (rows > 0)) > 0)
