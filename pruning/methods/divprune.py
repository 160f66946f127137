"""Keeps the visual tokens that are most unlike each other: greedy max-min diversity, the question unseen.

DivPrune, "Diversity-based Visual Token Pruning for Large Multimodal Models" (arXiv 2503.02175).

Paper facts: the distance is 1 - cosine of the *projected* tokens; the first token is the one whose nearest
other token is farthest; each next one is farthest from its nearest chosen one; 0.098 of the tokens stay
(56 of 576), in raster order, with compact positions. Ours: equal distances take the lower index, and the
kept share is rounded half up. Written from the description, not from the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, resolve_count, scaled_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.greedy import cosine_matrix, spread_rounds
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, select_mask
from foveate.pruning.spec import MethodConfig, Site, option

SITES = ("encoder",)
PAPER = "arXiv 2503.02175"
TITLE = "DivPrune"
KIND = "training-free"

_SELF = 4.0
"""Taken off a token's likeness to itself: below every cosine."""


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of divprune."""

    ratio: float = option(0.098, "kept share without a budget: 56 of 576", low=0, high=1, open_low=True)


class Method(PruningMethod):
    """Farthest-point selection over the cosines of the projected candidates."""

    sites = (Site.ENCODER,)
    needs_projected = True

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``."""
        assert isinstance(evidence, EncoderEvidence)
        assert evidence.projected is not None
        cosine = cosine_matrix(evidence.projected)  # b n n
        size = torch.ones_like(evidence.tile).sum(dim=-1)  # b
        count = resolve_count(budget, scaled_count(size, self.config.ratio), size)
        taken = spread_rounds(cosine, most_alone(cosine), count)
        return select_mask(taken < count.unsqueeze(-1))


def most_alone(cosine: Tensor) -> Tensor:
    """``[b]``: the candidate whose most similar other one is the least similar, by ``cosine [b, n, n]``."""
    place = torch.arange(cosine.shape[1], device=cosine.device)
    own = (place.unsqueeze(1) == place).to(cosine.dtype)  # n n
    return (cosine - own * _SELF).amax(dim=2).argmin(dim=1)
