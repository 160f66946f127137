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

from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.evidence import ROLE_TEXT, ROLE_VISUAL, DecoderEvidence, EncoderEvidence
from foveate.pruning.knee import knee_count
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, rank, select_mask, sort_scores
from foveate.pruning.spec import KneeConfig, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2409.01162, stage 2"

_MASKED = -1e30
"""Logit of a masked pair: finite, so that a row with nothing to see stays a number (and is not used)."""


@dataclass(frozen=True, kw_only=True)
class Config(KneeConfig):
    """Options of text-relevance; the defaults are the reference configuration."""

    rule: str = option("ratio", "how many visual tokens stay", choices=("ratio", "knee"))
    ratio: float = option(0.5, "rule=ratio: kept share of visual tokens", low=0, high=1, open_low=True)
    profile: str = option("faithful", "faithful prunes text too, safe keeps it", choices=("faithful", "safe"))
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
        place = torch.arange(evidence.token_role.shape[1], device=evidence.token_role.device)  # s
        valid = place < evidence.length.unsqueeze(-1)  # b s
        visual = valid & (evidence.token_role == ROLE_VISUAL)
        text = valid & (evidence.token_role == ROLE_TEXT)
        score, rows = relevance(evidence, query_rows(evidence, config.query), config.rope_free)

        size = _count(visual)
        wanted = self._visual_rule(score, visual, size)
        count = resolve_count(budget, wanted, size, min_keep=config.min_keep)
        seen = _count(visual & (rows > 0)) > 0  # b
        all_asked = budget.given() & (count >= size)
        pruned = (seen & ~all_asked).unsqueeze(-1)  # b 1

        keep = ~visual | (rank(score, visual) < count.unsqueeze(-1))
        if config.profile == "faithful":
            text_count = ratio_count(config.text_ratio, _count(text))
            keep = keep & (~text | (rank(score, text) < text_count.unsqueeze(-1)))
        return select_mask(valid & (keep | ~pruned))

    def _visual_rule(self, score: Tensor, visual: Tensor, size: Tensor) -> Tensor:
        """Visual tokens that the method itself would keep, ``[b]``."""
        if self.config.rule == "ratio":
            return ratio_count(self.config.ratio, size)
        curve = sort_scores(torch.where(visual, score, torch.full_like(score, -1.0)))[0]
        return knee_count(curve, size, self.config)


def query_rows(evidence: DecoderEvidence, which: str) -> Tensor:
    """Rows ``[b, t]`` of the chunk that define relevance; -1 is padding.

    ``text``: the rows given; ``last``: the last of them, per sequence; ``all``: every valid row of the chunk.
    """
    index = evidence.query_index
    if which == "last":
        valid = index < evidence.length.unsqueeze(-1)
        return torch.where(valid, index, torch.full_like(index, -1)).amax(dim=-1, keepdim=True)
    if which == "all":
        place = torch.arange(evidence.token_role.shape[1], device=index.device).expand_as(evidence.token_role)
        return torch.where(place < evidence.length.unsqueeze(-1), place, torch.full_like(place, -1))
    return index


def relevance(evidence: DecoderEvidence, index: Tensor, rope_free: bool) -> tuple[Tensor, Tensor]:
    """Score ``[b, s]`` (float32) and the number of question rows ``[b, s]`` behind it.

    Row i sees column j if ``j <= i`` and ``j < length``. A text token's own row is left out of its mean:
    attention to oneself says nothing. A column that no row sees scores 0.
    """
    query, key = (evidence.query_plain, evidence.key_plain) if rope_free else (evidence.query, evidence.key)
    attention = mean_attention(query, key, index, evidence.scale)  # b t s
    place = torch.arange(key.shape[2], device=key.device)  # s
    row = index.unsqueeze(-1)  # b t 1
    own = (row == place) & (evidence.token_role == ROLE_TEXT).unsqueeze(1)  # b t s
    length = evidence.length.reshape(-1, 1, 1)  # b -> b 1 1
    used = (row >= place) & (row >= 0) & (row < length) & (place < length) & ~own  # b t s
    rows = used.to(torch.int64).sum(dim=1)  # b s
    share = torch.where(used, attention, torch.zeros_like(attention)).sum(dim=1)  # b s
    return share / torch.maximum(rows, torch.ones_like(rows)).to(share.dtype), rows


def mean_attention(query: Tensor, key: Tensor, index: Tensor, scale: float) -> Tensor:
    """Causal attention ``[b, t, s]`` (float32, mean over heads) of the rows ``index [b, t]``.

    One group of heads at a time: a long question in a long prompt would otherwise hold every head's square
    at once, gigabytes at 3,000 tokens. Index -1 is computed as row 0, and rows of padding see padding: the
    caller leaves both out.
    """
    b, h, s, head_dim = query.shape
    g = key.shape[1]
    t = index.shape[1]
    row = torch.maximum(index, torch.zeros_like(index))  # b t
    where = row.reshape(b, 1, t, 1).expand(b, h, t, head_dim)  # b t -> b h t head_dim
    asked = torch.gather(query, 2, where).float()  # b h t head_dim
    # Query head i reads key head i // (h/g): the heads of a group are neighbours.
    groups = asked.reshape(b, g, h // g, t, head_dim)  # b (g r) t head_dim -> b g r t head_dim
    hidden = torch.arange(s, device=key.device) > row.unsqueeze(-1)  # b t s
    masked = hidden.to(asked.dtype).unsqueeze(1) * _MASKED  # b 1 t s
    total = torch.zeros_like(masked[:, 0])  # b t s
    for group in range(g):
        keys = key[:, group].float().transpose(1, 2).unsqueeze(1)  # b s head_dim -> b 1 head_dim s
        logits = torch.matmul(groups[:, group], keys) * scale + masked  # b r t s
        total = total + torch.softmax(logits, dim=-1).sum(dim=1)
    return total / h


def _count(mask: Tensor) -> Tensor:
    return mask.to(torch.int64).sum(dim=-1)
