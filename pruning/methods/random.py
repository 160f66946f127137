"""Keeps a uniformly random subset: the baseline that every method has to beat.

UniPruneBench (arXiv 2511.02650) finds random pruning to be a strong baseline, so an accuracy claim without it
says little. The subset comes from a hash of (token, seed) computed inside the graph, so a ``seed`` input
changes it without a new export, and the same seed gives the same subset on every backend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.evidence import ROLE_VISUAL, DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, rank, select_mask, select_top
from foveate.pruning.spec import MethodConfig, Site, option

SITES = ("encoder", "decoder")
PAPER = "baseline"
TITLE = "random"
KIND = "baseline"

PRIME = 2**31 - 1
ROUND_KEYS = (668265263, 374761393, 1274126177, 2147001325)


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of random."""

    ratio: float = option(0.5, "kept share of visual tokens", low=0, high=1, open_low=True)
    seed: int = option(0, "added to the seed of each request", low=0, high=2147483646)


class Method(PruningMethod):
    """Ranks tokens by a hash of their index; at the decoder site only visual tokens are candidates."""

    sites = (Site.ENCODER, Site.DECODER)
    needs_seed = True

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates (encoder) or over the chunk (decoder, text and padding as ever)."""
        if isinstance(evidence, EncoderEvidence):
            score = self._score(evidence.tile, seed)
            size = torch.ones_like(score).sum(dim=-1)
            return select_top(score, resolve_count(budget, ratio_count(self.config.ratio, size), size))
        score = self._score(evidence.token_role, seed)
        place = torch.arange(score.shape[1], device=score.device)
        valid = place < evidence.length.unsqueeze(-1)  # b s
        visual = valid & (evidence.token_role == ROLE_VISUAL)
        size = visual.to(torch.int64).sum(dim=-1)
        count = resolve_count(budget, ratio_count(self.config.ratio, size), size)
        return select_mask(valid & (~visual | (rank(score, visual) < count.unsqueeze(-1))))

    def _score(self, like: Tensor, seed: Tensor | None) -> Tensor:
        """Hash of each candidate, int64 ``[b, n]`` in ``[0, PRIME)``, for ``like [b, n]``."""
        index = torch.arange(like.shape[1], device=like.device).expand(like.shape)  # b n
        base = torch.zeros_like(index[:, :1]) if seed is None else seed.reshape(-1, 1)  # b 1
        return hash_index(index, base % PRIME + self.config.seed)


def hash_index(index: Tensor, seed: Tensor) -> Tensor:
    """A keyed permutation of ``[0, PRIME)`` applied to ``index``; ``seed`` in ``[0, 2 * PRIME)`` broadcasts.

    Four rounds of ``x -> (x + seed + key)^5 mod PRIME`` (the MiMC construction). 5 and PRIME - 1 have no
    common factor, so each round is one-to-one and no two tokens tie. Products stay below 2^62; only add,
    multiply and non-negative modulo are used, which every backend has for int64.
    """
    for key in ROUND_KEYS:
        base = (index + seed + key) % PRIME
        square = base * base % PRIME
        index = square * square % PRIME * base % PRIME
    return index
