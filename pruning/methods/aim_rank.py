"""Drops visual tokens layer by layer, by PageRank over the attention between all tokens, until none is left.

The second part of AIM (arXiv 2412.03248). Facts from the official code: at a layer with masked logits Z,
``M = softmax(Z / 0.1)`` per head; from an even start, five times ``p <- p M`` (importance *received*; no
damping); a token's importance is the root of the mean square over heads. Text always stays. With l1 = 13 of
Vicuna-7B's 32 layers (counted from 0), 7/8, 6/8, ... 1/8 of the visual tokens that entered stay after layers
13 to 19, and none after layer 20; shares are rounded down. Qwen2-7B (28 layers) starts at 14:
``aim-rank@15:share=0.875 ... aim-rank@22:share=0``. The official code only masks tokens, at the same result;
here they are gathered, and cost nothing any more.

Of the first part, merging before the decoder, see aim-merge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.attention import MASKED, chunk_masks, count_true, keep_visual
from foveate.pruning.budget import Budget, floor_count, resolve_or_none
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection
from foveate.pruning.spec import MethodConfig, Schedule, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2412.03248, pruning"
TITLE = "AIM"
KIND = "training-free"
# Vicuna-7B's, as shares of its 32 layers: after layer 13 (counted from 0), 14 layers have run.
SCHEDULE: Schedule = (
    (0.4375, {"share": 0.875}),
    (0.46875, {"share": 0.75}),
    (0.5, {"share": 0.625}),
    (0.53125, {"share": 0.5}),
    (0.5625, {"share": 0.375}),
    (0.59375, {"share": 0.25}),
    (0.625, {"share": 0.125}),
    (0.65625, {"share": 0.0}),
)


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of aim-rank; the defaults of the ranking are the official code's."""

    share: float = option(
        0.5, "visual tokens left, as a share of those that entered the decoder; 0: none", low=0, high=1
    )
    temperature: float = option(0.1, "logits are divided by it before the softmax", low=0, open_low=True)
    iterations: int = option(5, "steps of the walk", low=1, high=32)
    damping: float = option(0.0, "share of every step that starts anew anywhere", low=0, high=1)


class Method(PruningMethod):
    """One step of the schedule. Never keeps more than arrive."""

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
        size = count_true(chunk_masks(evidence)[1])
        count = resolve_or_none(budget, floor_count(evidence.entered, self.config.share), size)
        return keep_visual(evidence, importance(evidence, self.config), count, size > 0)


def importance(evidence: DecoderEvidence, config: Config) -> Tensor:
    """Importance ``[b, s]`` (float32) of every row: where a walk along the attention ends.

    The whole ``s x s`` attention of one group of heads is held at a time.
    """
    b, h, s, head_dim = evidence.query.shape
    g = evidence.key.shape[1]
    valid = chunk_masks(evidence)[0]
    start = valid.to(torch.float32) / evidence.length.to(torch.float32).unsqueeze(-1)  # b s
    start = start.reshape(b, 1, 1, s)
    place = torch.arange(s, device=valid.device)
    hidden = (place > place.unsqueeze(-1)).unsqueeze(0) | ~valid.unsqueeze(1)  # b s s
    masked = hidden.to(torch.float32).unsqueeze(1) * MASKED  # b 1 s s
    # Query head i reads key head i // (h/g): the heads of a group are neighbours.
    queries = evidence.query.float().reshape(b, g, h // g, s, head_dim)  # b (g r) s e -> b g r s e
    walks = []
    for group in range(g):
        keys = evidence.key[:, group].float().transpose(1, 2).unsqueeze(1)  # b s e -> b 1 e s
        logits = torch.matmul(queries[:, group], keys) * (evidence.scale / config.temperature) + masked
        moves = torch.softmax(logits, dim=-1)  # b r s s
        walk = start.expand(b, h // g, 1, s)
        for _ in range(config.iterations):
            walk = torch.matmul(walk, moves)
            if config.damping:
                walk = walk * (1.0 - config.damping) + start * config.damping
        walks.append(walk.squeeze(2))
    walk = torch.cat(walks, dim=1)  # b h s
    # Scaled by the largest: squares of small importances would leave float32.
    top = walk.amax(dim=1, keepdim=True)  # b 1 s
    scaled = walk / torch.where(top > 0, top, torch.ones_like(top))
    return top.squeeze(1) * torch.sqrt((scaled * scaled).mean(dim=1))
