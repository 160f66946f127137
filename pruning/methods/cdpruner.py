"""Keeps visual tokens that are relevant to the question and unlike each other: a conditional DPP.

CDPruner, "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs" (arXiv
2506.10967).

Paper facts: the kernel is diag(r) S diag(r), where S holds the cosines of the projected tokens and r the
relevance, min-max scaled to (0, 1]; optionally r becomes exp(a r) with a = theta / (2 (1 - theta)); greedy
maximum a posteriori picks the tokens; raster order, compact positions. The paper takes the relevance from
CLIP's text tower and negates it. Ours: no checkpoint of a VLM has that tower, so the relevance is the cosine
of a projected token with the user's words in the decoder's embedding space, as OpenVINO GenAI does it for
models without CLIP (there: the mean of the cosines with each word, here: the cosine with the mean of the
words); the scaling is per item; tokens that the chosen ones span come last; 64 of 576 stay without a budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.curve import cosine_similarity
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.greedy import cosine_matrix, map_rounds
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, select_mask
from foveate.pruning.spec import MethodConfig, Site, option

SITES = ("encoder",)
PAPER = "arXiv 2506.10967"
TITLE = "CDPruner"
KIND = "training-free"

_FLOOR = 1e-6
"""Relevance of the least relevant token (the paper's value): above 0, so that it can still be chosen."""


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of cdpruner."""

    ratio: float = option(0.1111, "kept share without a budget: 64 of 576", low=0, high=1, open_low=True)
    relevance: str = option(
        "linear",
        "how the scaled relevance enters the kernel: as it is, or exp(a r)",
        choices=("linear", "exp"),
    )
    theta: float = option(
        0.5, "relevance=exp: weight of the relevance, 0 = diversity alone", low=0, high=0.99
    )
    negative: bool = option(False, "turn the relevance round, as the paper does with CLIP's")

    def __post_init__(self) -> None:
        """Refuses options without effect (``UsageError``)."""
        super().__post_init__()
        self.uses("theta", relevance="exp")


class Method(PruningMethod):
    """Greedy determinant maximisation over cosines weighted by relevance to the user's words."""

    sites = (Site.ENCODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    @property
    def needs_prompt(self) -> bool:
        """The relevance is a likeness to the user's words."""
        return True

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``."""
        assert isinstance(evidence, EncoderEvidence)
        assert evidence.projected is not None
        weight = self._weight(evidence)  # b n
        kernel = cosine_matrix(evidence.projected) * weight.unsqueeze(1) * weight.unsqueeze(2)
        size = torch.ones_like(evidence.tile).sum(dim=-1)  # b
        count = resolve_count(budget, ratio_count(self.config.ratio, size), size)
        return select_mask(map_rounds(kernel, count) < count.unsqueeze(-1))

    def _weight(self, evidence: EncoderEvidence) -> Tensor:
        """The relevance of each candidate, within (0, 1], ``[b, n]``; a common factor changes nothing."""
        assert evidence.projected is not None
        assert evidence.prompt is not None
        score = cosine_similarity(evidence.projected, evidence.prompt)
        score = score if evidence.ends is None else evidence.ends(score)
        score = -score if self.config.negative else score
        low, high = score.amin(dim=-1, keepdim=True), score.amax(dim=-1, keepdim=True)
        scaled = (score - low + _FLOOR) / (high - low + _FLOOR)
        if self.config.relevance == "linear":
            return scaled
        alpha = self.config.theta / (2 * (1 - self.config.theta))
        return torch.exp((scaled - 1) * alpha)
