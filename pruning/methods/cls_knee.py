"""Keeps the patches most similar to the CLS token, up to the knee of the sorted similarity curve.

Stage 1 of "Sparsity Meets Similarity" (arXiv 2409.01162, v1 titled "Balancing Performance and Efficiency"):
the similarity of visual tokens to CLS is long-tailed, so each image is cut at the inflection point of its
own curve and the number of kept tokens follows the image.

Paper fact: the curve, the inflection point, the dynamic count, the place (encoder output). Reconstruction:
which similarity, which layer, how the inflection point is found, all limits. ``cls_full`` is the score in
the public code of the sister paper (arXiv 2409.01179) and in PruMerge (arXiv 2403.15388); ``cls_mean`` is
VTC-CLS (arXiv 2412.05819).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence
from foveate.pruning.knee import knee_count
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, select_ranked, sort_scores
from foveate.pruning.spec import KneeConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("encoder",)
PAPER = "arXiv 2409.01162, stage 1"


@dataclass(frozen=True, kw_only=True)
class Config(KneeConfig):
    """Options of cls-knee; the defaults are the reference configuration."""

    score: str = option("cls_full", "similarity to CLS", choices=("cls_full", "cls_mean", "cosine"))
    layer: int | None = option(None, "cls_full: encoder layer (none = the reader of the features)", low=0)
    layers: tuple[int, ...] | None = option(
        None, "cls_mean: encoder layers (none = the three that end with the features)", low=0
    )
    min_keep: int = option(16, "the knee never keeps fewer", low=1)
    max_keep: int | None = option(None, "the knee never keeps more", low=1)
    round_to: int = option(1, "round the knee's count up to a multiple", low=1)

    def __post_init__(self) -> None:
        """Refuses options without effect and limits that contradict each other (``UsageError``)."""
        super().__post_init__()
        for name, owner in (("layer", "cls_full"), ("layers", "cls_mean")):
            if getattr(self, name) is not None and self.score != owner:
                raise UsageError(
                    f"Method 'cls-knee' uses option '{name}' only with score={owner}.",
                    found=f"score={self.score}",
                    wanted=f"score={owner}",
                    mend=f"Drop '{name}' or change the score.",
                )
        if self.max_keep is not None and self.max_keep < self.min_keep:
            raise UsageError(
                "Method 'cls-knee' has max_keep below min_keep.",
                found=f"min_keep={self.min_keep}, max_keep={self.max_keep}",
                wanted="min_keep <= max_keep",
                mend="Lower min_keep or raise max_keep.",
            )


class Method(PruningMethod):
    """Scores each patch against CLS, sorts, finds the knee, keeps the head of the curve in raster order."""

    sites = (Site.ENCODER,)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def layers(self, num_layers: int, feature_layer: int) -> tuple[int, ...]:
        """Encoder layers whose raw query and key are scored; none for ``cosine``.

        Raises:
            UsageError: a layer, or a place of the features, that the encoder does not have.
        """
        state = feature_layer if feature_layer >= 0 else num_layers + 1 + feature_layer
        if not 0 <= state <= num_layers:
            raise UsageError(
                "The features are taken from a layer that the vision encoder does not have.",
                found=f"feature layer {feature_layer}",
                wanted=f"{-num_layers - 1} to {num_layers}",
                mend="Check vision_feature_layer in the checkpoint's config.json.",
            )
        reader, writers = min(state, num_layers - 1), range(max(state - 3, 0), max(state, 1))
        chosen: dict[str, Iterable[int]] = {
            "cls_full": (reader if self.config.layer is None else self.config.layer,),
            "cls_mean": self.config.layers or writers,
            "cosine": (),
        }
        layers = tuple(sorted(set(chosen[self.config.score])))
        if any(layer >= num_layers for layer in layers):
            raise UsageError(
                f"Method 'cls-knee' asks for encoder layer {layers[-1]}.",
                found=f"layer {layers[-1]}",
                wanted=f"0 to {num_layers - 1}",
                mend="Choose a layer that the vision encoder has.",
            )
        return layers

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over ``evidence.features [b, n, c]``."""
        assert isinstance(evidence, EncoderEvidence)
        key, score = SCORES[self.config.score](evidence)
        index = sort_scores(key)[1]
        curve = torch.gather(score, 1, index)
        size = torch.ones_like(index).sum(dim=-1)
        count = resolve_count(
            budget,
            knee_count(curve, size, self.config),
            size,
            min_keep=self.config.min_keep,
            max_keep=self.config.max_keep,
            round_to=self.config.round_to,
        )
        return select_ranked(index, count)


def cls_full(evidence: EncoderEvidence) -> tuple[Tensor, Tensor]:
    """CLS row of softmax(Q K^T / sqrt(c)) over the raw projections, heads not split, CLS column dropped.

    Not the attention that the encoder uses: the product runs over all heads at once and is sharper. Returns
    the sorting key (logits) and the score (probabilities), ``[b, n]`` each: the same order, but logits still
    differ where probabilities underflow.
    """
    (layer,) = evidence.query
    query, key = evidence.query[layer].float(), evidence.key[layer].float()  # b n+1 c
    # Multiply and sum, not matmul: equal keys then give equal scores wherever they stand.
    logits = (query[:, :1] * key).sum(dim=-1) * query.shape[-1] ** -0.5  # b n+1
    return logits[:, 1:], torch.softmax(logits, dim=-1)[:, 1:]


def cls_mean(evidence: EncoderEvidence) -> tuple[Tensor, Tensor]:
    """True CLS attention, mean over heads, sum over layers, ``[b, n]``; CLS column dropped."""
    total = torch.stack([_head_mean(evidence, layer) for layer in sorted(evidence.query)]).sum(dim=0)
    return total, total


def cosine(evidence: EncoderEvidence) -> tuple[Tensor, Tensor]:
    """Cosine of each patch's hidden state with the CLS row of the same hidden state, ``[b, n]``."""
    patch, cls = evidence.features.float(), evidence.cls.float().unsqueeze(1)  # b n c, b 1 c
    product = (patch * cls).sum(dim=-1)
    norm = torch.sqrt((patch * patch).sum(dim=-1)) * torch.sqrt((cls * cls).sum(dim=-1))
    score = product / torch.clamp(norm, min=1e-12)
    return score, score


SCORES = {"cls_full": cls_full, "cls_mean": cls_mean, "cosine": cosine}
"""Word in the config -> (sorting key, score)."""


def _head_mean(evidence: EncoderEvidence, layer: int) -> Tensor:
    """``[b, n]``: CLS row of one layer's attention, mean over heads."""
    query, key = evidence.query[layer].float(), evidence.key[layer].float()
    b, m, c = key.shape
    head_dim = c // evidence.num_heads
    first = query[:, 0].reshape(b, 1, evidence.num_heads, head_dim)  # b c -> b 1 h head_dim
    keys = key.reshape(b, m, evidence.num_heads, head_dim)  # b m c -> b m h head_dim
    attention = torch.softmax((first * keys).sum(dim=-1) * head_dim**-0.5, dim=1)  # b m h
    return attention.mean(dim=-1)[:, 1:]
