"""Keeps the visual tokens (and, in the faithful profile, the text tokens) that the question attends to most.

Stage 2 of "Sparsity Meets Similarity" (arXiv 2409.01162): inside the language model, visual and textual
tokens with low correlation to the text are dropped.

Paper fact: a second cut in a decoder layer, by interaction with the text; the v1 abstract drops text tokens
too. Reconstruction: the layer (2, FastV's convention, arXiv 2403.06764), the score (attention received from
the question, mean over heads and rows), the ratios, the protected set. Visual and text tokens are ranked
apart, because attention to text is systematically larger. ``profile=safe`` keeps all text: AIM (arXiv
2412.03248) measured large losses from pruning it. ``rope_free=true`` scores without the rotation, as
Feather (arXiv 2412.13180) advises for shallow layers, where the rotation favours the bottom of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.attention import chunk_masks, count_true, query_rows, relevance
from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.evidence import ROLE_TEXT, DecoderEvidence, EncoderEvidence
from foveate.pruning.knee import knee_count
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, rank, select_mask, sort_scores
from foveate.pruning.spec import KneeConfig, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2409.01162, stage 2"
TITLE = "Sparsity Meets Similarity"
KIND = "training-free"


@dataclass(frozen=True, kw_only=True)
class Config(KneeConfig):
    """Options of text-relevance; the defaults are the reference configuration."""

    rule: str = option("ratio", "how many visual tokens stay", choices=("ratio", "knee"))
    ratio: float = option(0.5, "rule=ratio: kept share of visual tokens", low=0, high=1, open_low=True)
    profile: str = option("safe", "safe keeps all text, faithful prunes it too", choices=("safe", "faithful"))
    text_ratio: float = option(
        0.5, "faithful: kept share of the prunable text tokens", low=0, high=1, open_low=True
    )
    rope_free: bool = option(False, "score with queries and keys before the rotation")
    query: str = option("text", "rows that define relevance", choices=("text", "last", "all"))
    min_keep: int = option(1, "the rule never keeps fewer visual tokens", low=1)

    def __post_init__(self) -> None:
        """Refuses options without effect (``UsageError``)."""
        super().__post_init__()
        self.uses("ratio", rule="ratio")
        self.uses("knee", "knee_scale", rule="knee")
        self.uses("text_ratio", profile="faithful")


class Method(PruningMethod):
    """Ranks visual tokens by attention received from the question; text likewise; protects everything else.

    1. Attention rows of the question only (the model's own attention stays fused).
    2. Score of token j: mean over heads and over the question rows that come after it.
    3. Visual: the best by ``ratio`` or knee, or as many as the budget says. Text: the best ``text_ratio``.
    4. A sequence without visual tokens, or whose question sees none of them, is left alone; so is one whose
       budget keeps every visual token. Padding is never kept.
    """

    sites = (Site.DECODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the chunk ``[b, s]``; orders are relative to the chunk."""
        assert isinstance(evidence, DecoderEvidence)
        config = self.config
        valid, visual = chunk_masks(evidence)
        text = valid & (evidence.token_role == ROLE_TEXT)
        score, rows = relevance(evidence, query_rows(evidence, config.query), config.rope_free)

        size = count_true(visual)
        wanted = self._visual_rule(score, visual, size)
        count = resolve_count(budget, wanted, size, min_keep=config.min_keep)
        seen = count_true(visual & (rows > 0)) > 0  # b
        all_asked = budget.given() & (count >= size)
        pruned = (seen & ~all_asked).unsqueeze(-1)  # b 1

        keep = ~visual | (rank(score, visual) < count.unsqueeze(-1))
        if config.profile == "faithful":
            text_count = ratio_count(config.text_ratio, count_true(text))
            keep = keep & (~text | (rank(score, text) < text_count.unsqueeze(-1)))
        return select_mask(valid & (keep | ~pruned))

    def _visual_rule(self, score: Tensor, visual: Tensor, size: Tensor) -> Tensor:
        """Visual tokens that the method itself would keep, ``[b]``."""
        if self.config.rule == "ratio":
            return ratio_count(self.config.ratio, size)
        curve = sort_scores(torch.where(visual, score, torch.full_like(score, -1.0)))[0]
        return knee_count(curve, size, self.config)
