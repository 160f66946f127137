"""Sends all visual tokens out of the decoder once a trained gate finds that the text has seen enough.

"Accelerating Multimodal LLMs via Dynamic Visual-Token Exit" (arXiv 2411.19628). Facts, from the authors'
code: a gate for each layer, linear, exact GELU, linear, both without bias, 2048 wide in between; it reads
its layer's output at the prompt's text behind the image: the mean of all its rows but the last, beside the
last one; the second logit above the first means exit; positions are kept; gates run in the prefill only.

Ours: gates behind a few layers rather than all of them (each is a place where the number of tokens may
change); ``margin``, a threshold that the paper has not; ``hidden`` follows the decoder's width, which gives
the paper's 2048 for 7B; a question of one row has a zero mean; a budget of the request switches the gate
off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.pruning.attention import chunk_masks, count_true, keep_evenly, query_rows
from foveate.pruning.blocks import Linear
from foveate.pruning.budget import Budget, resolve_or_none
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, ModelShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection
from foveate.pruning.spec import MethodConfig, Schedule, Site, option

SITES = ("decoder",)
PAPER = "arXiv 2411.19628"
TITLE = "DyVTE"
KIND = "trained"
SCHEDULE: Schedule = ((0.34, {}), (0.5, {}), (0.67, {}), (0.84, {}))


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of dyvte."""

    hidden: int | None = option(None, "the gate's inner width (none = half the decoder's)", low=1)
    margin: float = option(0.0, "exit only where the exit logit is ahead by more than this")


class Gate(nn.Module):
    """Two logits, stay and exit, from what the question's rows say."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(2 * width, hidden, bias=False)
        self.fc2 = Linear(hidden, 2, bias=False)

    def forward(self, seen: Tensor) -> Tensor:
        """``[b, 2 d]`` to ``[b, 2]``."""
        logits: Tensor = self.fc2(functional.gelu(self.fc1(seen)))
        return logits


class Method(PruningMethod):
    """Keeps every visual token, or none; text always stays.

    A sequence without visual tokens or without a question row is left alone. A request's budget overrides the
    gate: so many tokens stay, evenly spread.
    """

    sites = (Site.DECODER,)
    trained = True
    weight_options = ("hidden",)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def build(self, shape: ModelShape) -> None:
        """The gate, for the decoder's width."""
        self.gate = Gate(shape.hidden_size, self.config.hidden or shape.hidden_size // 2)

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the chunk ``[b, s]``."""
        assert isinstance(evidence, DecoderEvidence)
        size = count_true(chunk_masks(evidence)[1])  # b
        last = query_rows(evidence, "last")  # b 1
        logits = self.gate(question_state(evidence.hidden, evidence.query_index, last))
        leaves = (logits[:, 1] - logits[:, 0] > self.config.margin) & (last[:, 0] >= 0)  # b
        rule = torch.where(leaves, torch.zeros_like(size), size)
        return keep_evenly(evidence, resolve_or_none(budget, rule, size))


def question_state(hidden: Tensor, index: Tensor, last: Tensor) -> Tensor:
    """What a gate reads, float32 ``[b, 2 d]``: mean of the question's rows but the last one, then that one.

    ``hidden [b, s, d]``; ``index [b, t]`` the question's rows, ``last [b, 1]`` the last of them that is no
    padding; -1 is none. Rows beyond ``last`` are padding.
    """
    d = hidden.shape[-1]
    before = ((index >= 0) & (index < last)).to(torch.float32).unsqueeze(-1)  # b t 1
    rows = _rows(hidden, index, d).float() * before  # b t d
    mean = rows.sum(dim=1) / torch.maximum(before.sum(dim=1), torch.ones_like(before[:, 0]))  # b d
    return torch.cat([mean, _rows(hidden, last, d)[:, 0].float()], dim=-1)


def _rows(hidden: Tensor, index: Tensor, d: int) -> Tensor:
    """Rows ``index [b, t]`` of ``hidden [b, s, d]``; row 0 for -1, and for padding beyond the chunk."""
    s = hidden.shape[1]
    inside = (index >= 0) & (index < s)
    row = torch.where(inside, index, torch.zeros_like(index))
    return torch.gather(hidden, 1, row.unsqueeze(-1).expand(-1, -1, d))  # b t -> b t d
