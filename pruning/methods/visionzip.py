"""Keeps the patches that CLS attends to most, and merges the others into evenly placed contextual tokens.

VisionZip (arXiv 2412.04467, CVPR 2025), training-free form. Facts, from the official code: dominant tokens
are the best by CLS attention, summed over heads, of the layer that writes the features; of the rest every
``step``-th is a target, ``step`` = rest // targets; every other patch joins the target with the best cosine
of their attention keys, averaged over heads; a target's row becomes itself *plus* the mean of those that
joined. Published splits: 54 + 10, 108 + 20, 162 + 30, that is 5 contextual tokens in 32. Where an encoder
has no CLS token the paper ranks by the mean attention that a patch receives (``score=received``).

Ours: the split for any other budget (rounded down), a merged row stands at its target's place, in raster
order (the code appends contextual tokens), and CLS is no candidate (the code counts it as a dominant
token).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape
from foveate.pruning.merging import (
    OUTSIDE,
    cosines,
    join,
    patch_keys,
    places,
    require_grid,
    require_layer,
    writer_layer,
)
from foveate.pruning.method import PruningMethod
from foveate.pruning.methods.cls_knee import cls_mean
from foveate.pruning.methods.saliency_knee import received
from foveate.pruning.selection import Selection, inverse, select_mask, sort_scores
from foveate.pruning.spec import MethodConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("encoder",)
PAPER = "arXiv 2412.04467"
TITLE = "VisionZip"
KIND = "training-free"


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of visionzip."""

    ratio: float = option(0.2222, "kept share without a budget: 128 of 576", low=0, high=1, open_low=True)
    context: float = option(0.15625, "share of the kept tokens that are contextual", low=0, high=1)
    score: str = option("cls", "attention of CLS, or attention received", choices=("cls", "received"))
    layer: int | None = option(None, "encoder layer (none = the writer of the features)", low=0)


class Method(PruningMethod):
    """Dominant tokens by attention, contextual tokens by merging what is left."""

    sites = (Site.ENCODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """The one layer whose attention and keys are read.

        Raises:
            UsageError: no CLS for score=cls, no grid of patches to merge on, or no such layer.
        """
        if self.config.score == "cls" and not shape.has_cls:
            raise UsageError(
                "Method 'visionzip' ranks by the attention of CLS, and this vision encoder has none.",
                found="an encoder without CLS",
                wanted="an encoder with CLS, such as CLIP or InternViT",
                mend="Use score=received, the paper's substitute.",
            )
        if self.config.context > 0:
            require_grid("visionzip", shape, "Use context=0: dominant tokens only, which every family has.")
        layer = writer_layer(shape) if self.config.layer is None else self.config.layer
        require_layer("visionzip", layer, shape)
        if self.config.score == "received" and layer not in shape.global_layers:
            return (self._whole_layer(layer, shape),)
        return (layer,)

    def _whole_layer(self, layer: int, shape: EncoderShape) -> int:
        """The last layer up to ``layer`` in which a patch sees its whole tile, or else the first such one."""
        whole = shape.global_layers
        if self.config.layer is not None or not whole:
            raise UsageError(
                "Method 'visionzip' reads the attention of a layer that sees the whole tile.",
                found=f"layer {layer}",
                wanted=f"one of {', '.join(map(str, whole))}"
                if whole
                else "an encoder with global attention",
                mend="Leave 'layer' out for the last of them." if whole else "Use method uniform.",
            )
        return max((each for each in whole if each < layer), default=whole[0])

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``, targets' rows merged."""
        assert isinstance(evidence, EncoderEvidence)
        score = received(evidence) if self.config.score == "received" else evidence.pool(cls_mean(evidence))
        place = inverse(sort_scores(score)[1])  # b n
        size = torch.ones_like(place).sum(dim=-1)
        count = resolve_count(budget, ratio_count(self.config.ratio, size), size)
        if self.config.context == 0:
            return select_mask(place < count.unsqueeze(-1))
        contextual = torch.floor(count.to(torch.float32) * self.config.context + 1e-4).to(torch.int64)
        dominant = place < (count - contextual).unsqueeze(-1)
        target = every_nth(~dominant, contextual)

        (layer,) = evidence.key
        key = patch_keys(evidence, layer)
        b, n, width = key.shape
        heads = key.reshape(b, n, evidence.num_heads, width // evidence.num_heads)  # b n (h e) -> b n h e
        likeness = cosines(heads.mean(dim=2))
        likeness = torch.where(target.unsqueeze(1), likeness, torch.full_like(likeness, OUTSIDE))
        others = ~dominant & ~target & (contextual > 0).unsqueeze(-1)
        joined = join(likeness.argmax(dim=-1), others)  # b target member
        number = joined.sum(dim=-1, keepdim=True)  # b n 1
        rows = evidence.features.float()
        mean = torch.matmul(joined, rows) / torch.clamp(number, min=1.0)
        # Rows that nobody joined are given back as they came, not as a sum with zero in another precision.
        merged = torch.where(number > 0, (rows + mean).to(evidence.features.dtype), evidence.features)
        return select_mask(dominant | target)._replace(features=merged)


def every_nth(rest: Tensor, number: Tensor) -> Tensor:
    """``[b, n]``: the first ``number [b]`` of every ``step``-th member of ``rest [b, n]``; none for 0.

    ``step`` is as large as it can be: members // number.
    """
    members = rest.to(torch.int64).sum(dim=-1)
    divisor = torch.where(number < 1, torch.ones_like(number), number)
    step = members // divisor
    step = torch.where(step < 1, torch.ones_like(step), step).unsqueeze(-1)  # b 1
    place = places(rest)  # b n
    return rest & (place % step == 0) & (place // step < number.unsqueeze(-1))
