"""Sends all visual tokens out of the decoder after one layer: a fixed exit.

The static form of three papers' findings: DyVTE (arXiv 2411.19628) decides the layer for each question by a
trained gate, and a gate's usual answer can be fixed; YOPO's lazy layer dropping (arXiv 2410.06169, part d)
lets no token look at visual ones from a layer on (20 of 40 in its LLaVA-1.5-13B script, 24 of 28 for
Qwen2-VL-7B); HiDrop (arXiv 2602.23699) ends its pruning with no visual token from layer 25 of 32 on. Where
YOPO masks before the softmax (its Qwen2-VL code), leaving the tokens out is the same function; its LLaVA code
zeroes probabilities after the softmax and does not spread their mass over the text, which differs.

Two thirds of the depth, used where no layer is named, is ours: between those three.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.attention import chunk_masks, count_true, keep_visual
from foveate.pruning.budget import Budget, resolve_or_none
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection
from foveate.pruning.spec import MethodConfig, Schedule, Site

SITES = ("decoder",)
PAPER = "arXiv 2411.19628, 2410.06169"
TITLE = "static exit (DyVTE, YOPO)"
KIND = "training-free"
SCHEDULE: Schedule = ((0.67, {}),)


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """No options: the layer says it all."""


class Method(PruningMethod):
    """Keeps text only. A request's budget overrides the exit: so many tokens stay, evenly spread.

    Token i of n stays when floor((i + 1) k / n) exceeds floor(i k / n): nobody ranks here.
    """

    sites = (Site.DECODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the chunk ``[b, s]``."""
        assert isinstance(evidence, DecoderEvidence)
        visual = chunk_masks(evidence)[1]
        size = count_true(visual)  # b
        count = resolve_or_none(budget, torch.zeros_like(size), size)
        # Number of visual tokens up to and including each row. MatMul: CumSum is a loop in TensorRT.
        place = torch.arange(visual.shape[1], device=visual.device)
        upto = (place.unsqueeze(-1) <= place).to(torch.float32)  # s s, exact up to 2^24
        number = torch.matmul(visual.to(torch.float32), upto).to(torch.int64)  # b s
        n = torch.maximum(size, torch.ones_like(size)).unsqueeze(-1)  # b 1
        k = count.unsqueeze(-1)  # b 1
        # Products stay below 2^63; the remainder falls exactly where the floor rises.
        rises = number * k % n < k
        return keep_visual(evidence, rises.to(torch.int64), count, size > 0)
