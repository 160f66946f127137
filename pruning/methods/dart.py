"""Keeps a few pivots and the visual tokens that duplicate them least; attention is not looked at.

DART, "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More" (arXiv
2502.11494).

Facts from the official code: after two layers, the 4 image tokens and the 4 text tokens behind the image with
the largest L1 norm of their (rotated, concatenated) keys are pivots; one pivot after the other takes the
floor(budget / 8) tokens that are still free and have the lowest cosine with it; text pivots are not counted
among the image tokens, so 4 + 8 * 15 of 576 stay by default; original positions. Ours: the order of the
pivots (image before text, largest norm first; the code walks a Python set), the cosine on the layer's output
as it is (the code applies the final norm first), and a budget's remainder, which the first pivots share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.attention import chunk_masks, count_true
from foveate.pruning.budget import Budget, floor_count, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, rank, select_mask
from foveate.pruning.spec import MethodConfig, Schedule, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2502.11494"
TITLE = "DART"
KIND = "training-free"
SCHEDULE: Schedule = ((2, {}),)


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of dart; the defaults are the official code's."""

    ratio: float = option(
        0.222, "kept share of the visual tokens, pivots on top: 124 of 576", low=0, high=1, open_low=True
    )
    image_pivots: int = option(4, "image tokens that are pivots", low=1, high=16)
    text_pivots: int = option(4, "text tokens behind the image that are pivots", low=0, high=16)


class Method(PruningMethod):
    """Pivots by key norm, then the least similar tokens of each; text is never touched."""

    sites = (Site.DECODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the chunk ``[b, s]``."""
        assert isinstance(evidence, DecoderEvidence)
        config = self.config
        valid, visual = chunk_masks(evidence)
        asked = asking_rows(evidence) & valid & ~visual
        size, pivots = count_true(visual), config.image_pivots + config.text_pivots
        rule = floor_count(size, config.ratio / pivots) * pivots + config.image_pivots
        count = resolve_count(budget, rule, size)

        norm = evidence.key.float().abs().sum(dim=(1, 3))  # b g s e -> b s
        image, text = rank(norm, visual), rank(norm, asked)
        chosen = visual & (image < config.image_pivots) & (image < count.unsqueeze(-1))
        pivot = [chosen & (image == place) for place in range(config.image_pivots)]
        pivot += [asked & (text == place) for place in range(config.text_pivots)]
        cosine = pivot_cosines(evidence.hidden, torch.stack(pivot, dim=1))  # b p s
        for number, quota in enumerate(_quotas(pivot, count - count_true(chosen))):
            free = visual & ~chosen
            chosen = chosen | (free & (rank(-cosine[:, number], free) < quota.unsqueeze(-1)))
        return select_mask(valid & (~visual | chosen))


def asking_rows(evidence: DecoderEvidence) -> Tensor:
    """Boolean ``[b, s]``: rows of the text behind the first image."""
    place = torch.arange(evidence.token_role.shape[1], device=evidence.token_role.device)  # s
    named = evidence.query_index.unsqueeze(-1) == place  # b t s
    return named.to(torch.int64).sum(dim=1) > 0


def pivot_cosines(hidden: Tensor, pivot: Tensor) -> Tensor:
    """Cosine ``[b, p, s]`` of all rows of ``hidden [b, s, d]`` with those that ``pivot [b, p, s]`` marks."""
    hidden = hidden.float()
    norm = torch.sqrt((hidden * hidden).sum(dim=-1, keepdim=True))  # b s 1
    unit = hidden / torch.clamp(norm, min=1e-12)
    place = torch.arange(hidden.shape[1], device=hidden.device)
    where = torch.where(pivot, place, torch.zeros_like(place)).sum(dim=-1)  # b p; a missing pivot reads row 0
    rows = torch.gather(unit, 1, where.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))  # b p d
    return torch.matmul(rows, unit.transpose(1, 2))


def _quotas(pivot: list[Tensor], total: Tensor) -> list[Tensor]:
    """How many tokens each pivot takes, ``[b]`` each: ``total [b]`` in equal parts, the first ones more.

    Pivots that a sequence does not have (``pivot``: masks ``[b, s]``) take none.
    """
    there = [count_true(mask) for mask in pivot]  # 0 or 1
    parts = torch.maximum(torch.stack(there).sum(dim=0), torch.ones_like(total))
    quotas, before = [], torch.zeros_like(total)
    for each in there:
        quotas.append(each * ((total + parts - 1 - before) // parts))
        before = before + each
    return quotas
