"""Attention in the decoder, recomputed for the rows that ask; and what methods do with such scores.

The model's own attention stays fused: a method that wants probabilities computes those of a few rows again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.pruning.evidence import ROLE_TEXT, ROLE_VISUAL, DecoderEvidence
from foveate.pruning.selection import Selection, rank, select_mask

QUERIES = ("text", "last", "all")
"""Which rows may define relevance, see :func:`query_rows`."""

MASKED = -1e30
"""Logit of a masked pair: finite, so that a row with nothing to see stays a number (and is not used)."""


def chunk_masks(evidence: DecoderEvidence) -> tuple[Tensor, Tensor]:
    """Boolean ``[b, s]`` each: rows that are no padding, and the visual tokens among them."""
    place = torch.arange(evidence.token_role.shape[1], device=evidence.token_role.device)  # s
    valid = place < evidence.length.unsqueeze(-1)
    return valid, valid & (evidence.token_role == ROLE_VISUAL)


def count_true(mask: Tensor) -> Tensor:
    """How many of ``mask [b, s]`` are true, int64 ``[b]``."""
    return mask.to(torch.int64).sum(dim=-1)


def keep_visual(evidence: DecoderEvidence, score: Tensor, count: Tensor, judged: Tensor) -> Selection:
    """All text, and of the visual tokens the ``count [b]`` with the largest ``score [b, s]``.

    A sequence whose ``judged [b]`` is false is left alone: nobody looked at its visual tokens.
    """
    valid, visual = chunk_masks(evidence)
    keep = ~visual | (rank(score, visual) < count.unsqueeze(-1))
    return select_mask(valid & (keep | ~judged.unsqueeze(-1)))


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
    masked = hidden.to(asked.dtype).unsqueeze(1) * MASKED  # b 1 t s
    total = torch.zeros_like(masked[:, 0])  # b t s
    for group in range(g):
        keys = key[:, group].float().transpose(1, 2).unsqueeze(1)  # b s head_dim -> b 1 head_dim s
        logits = torch.matmul(groups[:, group], keys) * scale + masked  # b r t s
        total = total + torch.softmax(logits, dim=-1).sum(dim=1)
    return total / h


def keep_evenly(evidence: DecoderEvidence, count: Tensor) -> Selection:
    """All text, and ``count [b]`` of the visual tokens, spread evenly: nobody ranked them.

    Token i of n (from 0) stays when floor((i + 1) k / n) exceeds floor(i k / n).
    """
    visual = chunk_masks(evidence)[1]
    size = count_true(visual)  # b
    # Number of visual tokens up to and including each row. MatMul: CumSum is a loop in TensorRT.
    place = torch.arange(visual.shape[1], device=visual.device)
    upto = (place.unsqueeze(-1) <= place).to(torch.float32)  # s s, exact up to 2^24
    number = torch.matmul(visual.to(torch.float32), upto).to(torch.int64)  # b s
    n = torch.maximum(size, torch.ones_like(size)).unsqueeze(-1)  # b 1
    k = count.unsqueeze(-1)  # b 1
    # Products stay below 2^63; the remainder falls exactly where the floor rises.
    rises = number * k % n < k
    return keep_visual(evidence, rises.to(torch.int64), count, size > 0)
