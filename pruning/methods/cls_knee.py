"""Keeps the patches most similar to the CLS token, up to the knee of the sorted similarity curve.

Stage 1 of "Sparsity Meets Similarity" (arXiv 2409.01162, v1 titled "Balancing Performance and Efficiency"):
the similarity of visual tokens to CLS is long-tailed, so each image is cut at the inflection point of its
own curve and the number of kept tokens follows the image.

Paper fact: the curve, the inflection point, the dynamic count, the place (encoder output). Reconstruction:
which similarity, which layer, how the inflection point is found, all limits. ``cls_full`` is the score in
the public code of the sister paper (arXiv 2409.01179) and in PruMerge (arXiv 2403.15388); ``cls_mean`` is
VTC-CLS (arXiv 2412.05819). An item of several tiles has one curve over all of them: each tile has a CLS row
of its own, and its patches' scores become those of the candidates by the family's pooling.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget
from foveate.pruning.curve import cosine_similarity, cut_curve
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection
from foveate.pruning.spec import CurveConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("encoder",)
PAPER = "arXiv 2409.01162, stage 1"

_TINY = 1e-37
"""Probabilities from here down lose digits in float32, or are 0."""


@dataclass(frozen=True, kw_only=True)
class Config(CurveConfig):
    """Options of cls-knee; the defaults are the reference configuration."""

    score: str = option("cls_full", "similarity to CLS", choices=("cls_full", "cls_mean", "cosine"))
    layer: int | None = option(None, "cls_full: encoder layer (none = the reader of the features)", low=0)
    layers: tuple[int, ...] | None = option(
        None, "cls_mean: encoder layers (none = the three that end with the features)", low=0
    )

    def __post_init__(self) -> None:
        """Refuses options without effect (``UsageError``)."""
        super().__post_init__()
        self.uses("layer", score="cls_full")
        self.uses("layers", score="cls_mean")


class Method(PruningMethod):
    """Scores each patch against CLS, sorts, finds the knee, keeps the head of the curve in raster order."""

    sites = (Site.ENCODER,)
    ranks = True

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """Encoder layers whose query and key are scored; none for ``cosine``.

        Raises:
            UsageError: an encoder without CLS, or a layer that it does not have.
        """
        if not shape.has_cls:
            others = "received, pooled or prompt" if shape.has_pool else "received or prompt"
            raise UsageError(
                "Method 'cls-knee' compares patches with the CLS token, and this vision encoder has none.",
                found="an encoder without CLS",
                wanted="an encoder with CLS, such as CLIP or InternViT",
                mend=f"Use method saliency-knee, with score={others}.",
            )
        last = shape.feature_layer
        reader, writers = min(last, shape.num_layers - 1), range(max(last - 3, 0), max(last, 1))
        chosen: dict[str, Iterable[int]] = {
            "cls_full": (reader if self.config.layer is None else self.config.layer,),
            "cls_mean": self.config.layers or writers,
            "cosine": (),
        }
        layers = tuple(sorted(set(chosen[self.config.score])))
        if any(layer >= shape.num_layers for layer in layers):
            raise UsageError(
                f"Method 'cls-knee' asks for encoder layer {layers[-1]}.",
                found=f"layer {layers[-1]}",
                wanted=f"0 to {shape.num_layers - 1}",
                mend="Choose a layer that the vision encoder has.",
            )
        return layers

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``."""
        assert isinstance(evidence, EncoderEvidence)
        if self.config.score != "cls_full":
            score = cls_mean(evidence) if self.config.score == "cls_mean" else cosine(evidence)
            return cut_curve(evidence.pool(score), evidence.tile, budget, self.config)
        score, finer = (evidence.pool(each) for each in cls_full(evidence))
        # Only below float32's range: elsewhere pooled logarithms would part what pooled probabilities tie.
        finer = torch.where(score > _TINY, torch.zeros_like(finer), finer)
        return cut_curve(score, evidence.tile, budget, self.config, finer)


def cls_full(evidence: EncoderEvidence) -> tuple[Tensor, Tensor]:
    """CLS row of softmax(Q K^T / sqrt(c)) over the raw projections, heads not split, CLS column dropped.

    Not the attention that the encoder uses: the product runs over all heads at once and is sharper. Returns
    the probabilities and their logarithms, ``[t, p]`` each: those still differ where probabilities underflow.
    """
    (layer,) = evidence.query
    query, key = evidence.query[layer].float(), evidence.key[layer].float()  # t p+1 c
    # Multiply and sum, not matmul: equal keys then give equal scores wherever they stand.
    logits = (query[:, :1] * key).sum(dim=-1) * query.shape[-1] ** -0.5  # t p+1
    return torch.softmax(logits, dim=-1)[:, 1:], torch.log_softmax(logits, dim=-1)[:, 1:]


def cls_mean(evidence: EncoderEvidence) -> Tensor:
    """True CLS attention, mean over heads, sum over layers, ``[t, p]``; CLS column dropped."""
    return torch.stack([_head_mean(evidence, layer) for layer in sorted(evidence.query)]).sum(dim=0)


def cosine(evidence: EncoderEvidence) -> Tensor:
    """Cosine of each patch's hidden state with the CLS row of the same hidden state, ``[t, p]``."""
    assert evidence.cls is not None
    return cosine_similarity(evidence.patches, evidence.cls)


def _head_mean(evidence: EncoderEvidence, layer: int) -> Tensor:
    """``[t, p]``: CLS row of one layer's attention, mean over heads."""
    query, key = evidence.query[layer].float(), evidence.key[layer].float()
    t, r, c = key.shape
    head_dim = c // evidence.num_heads
    first = query[:, 0].reshape(t, 1, evidence.num_heads, head_dim)  # t c -> t 1 h head_dim
    keys = key.reshape(t, r, evidence.num_heads, head_dim)  # t r c -> t r h head_dim
    attention = torch.softmax((first * keys).sum(dim=-1) * head_dim**-0.5, dim=1)  # t r h
    return attention.mean(dim=-1)[:, 1:]
