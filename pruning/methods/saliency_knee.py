"""Keeps the patches that attention or the question singles out, up to the knee; needs no CLS token.

Stage 1 of "Sparsity Meets Similarity" (arXiv 2409.01162) cuts the curve of similarities to CLS, which SigLIP
and the Qwen encoders do not have. The cut is the same here, the score another one: our substitute, not a fact
of that paper.

``received`` is the attention that a patch receives, on average over its tile, as in VisionZip (arXiv
2412.04467) where CLS is missing. ``pooled`` is the attention of the pooling head's query, SigLIP's stand-in
for CLS. ``prompt`` is the cosine with the user's words in the decoder's embedding space.
"""

from __future__ import annotations

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
PAPER = "after arXiv 2409.01162, stage 1"


@dataclass(frozen=True, kw_only=True)
class Config(CurveConfig):
    """Options of saliency-knee."""

    score: str = option(
        "received",
        "attention received from the tile, attention of the pooling head, or likeness to the user's words",
        choices=("received", "pooled", "prompt"),
    )
    layer: int | None = option(
        None,
        "received: encoder layer (none = the last global one below the features)",
        low=0,
    )

    def __post_init__(self) -> None:
        """Refuses options without effect (``UsageError``)."""
        super().__post_init__()
        self.uses("layer", score="received")


class Method(PruningMethod):
    """Scores each patch, sorts, finds the knee, keeps the head of the curve in raster order."""

    sites = (Site.ENCODER,)
    ranks = True

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    @property
    def needs_pooled(self) -> bool:
        """Only for ``score=pooled``."""
        return self.config.score == "pooled"

    @property
    def needs_prompt(self) -> bool:
        """Only for ``score=prompt``."""
        return self.config.score == "prompt"

    def layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """The one layer whose attention is scored; none for ``pooled`` and ``prompt``.

        Raises:
            UsageError: no pooling head, or a layer that does not see the whole tile.
        """
        if self.needs_pooled and not shape.has_pool:
            raise UsageError(
                "Method 'saliency-knee' cannot use score=pooled: this checkpoint's vision encoder has no "
                "attention-pooling head, or was published without its weights.",
                found="no pooling head",
                wanted="an encoder that keeps one, as some SigLIP checkpoints do",
                mend="Use score=received or score=prompt.",
            )
        if self.config.score != "received":
            return ()
        written = [layer for layer in shape.global_layers if layer < shape.feature_layer]
        # Features from the embeddings: nothing is written yet, and the first layer that looks must do.
        default = written[-1:] or shape.global_layers[:1]
        asked = default if self.config.layer is None else (self.config.layer,)
        if not asked or asked[0] not in shape.global_layers:
            whole = ", ".join(map(str, shape.global_layers))
            raise UsageError(
                "Method 'saliency-knee' reads the attention of a layer that sees the whole tile.",
                found=f"layer {asked[0]} of {shape.num_layers}" if asked else "no such layer",
                wanted=f"one of {whole}" if whole else "an encoder with global attention",
                mend="Leave 'layer' out for the last of them." if whole else "Use score=prompt.",
            )
        return (asked[0],)

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``."""
        assert isinstance(evidence, EncoderEvidence)
        return cut_curve(SCORES[self.config.score](evidence), evidence.tile, budget, self.config)


def received(evidence: EncoderEvidence) -> Tensor:
    """Attention that a patch receives from all rows of its tile, itself and CLS included, ``[b, n]``.

    Mean over heads and rows of softmax(Q K^T / sqrt(head_dim)). Head by head: all squares at once would take
    gigabytes where an image is a single tile of thousands of patches.
    """
    ((layer, query),) = evidence.query.items()
    query, key = query.float(), evidence.key[layer].float()  # t r w
    head_dim = query.shape[-1] // evidence.num_heads
    total = torch.zeros_like(key[:, :, 0])  # t r
    for start in range(0, query.shape[-1], head_dim):
        asked, keys = (each[:, :, start : start + head_dim] for each in (query, key))
        attention = torch.softmax(torch.matmul(asked * head_dim**-0.5, keys.transpose(1, 2)), dim=-1)  # t r r
        # Turned first: equal columns then have equal means wherever they stand, and the lower index wins.
        total = total + attention.transpose(1, 2).contiguous().mean(dim=-1)
    score = total / evidence.num_heads
    return evidence.pool(score if evidence.cls is None else score[:, 1:])


def pooled(evidence: EncoderEvidence) -> Tensor:
    """Attention of the pooling head's query, mean over heads, ``[b, n]``."""
    assert evidence.pooled is not None
    return evidence.pool(evidence.pooled.float())


def prompt(evidence: EncoderEvidence) -> Tensor:
    """Cosine of each projected candidate with the mean embedding of the user's words, ``[b, n]``."""
    assert evidence.projected is not None
    assert evidence.prompt is not None
    score = cosine_similarity(evidence.projected, evidence.prompt)
    return score if evidence.ends is None else evidence.ends(score)


SCORES = {"received": received, "pooled": pooled, "prompt": prompt}
"""Word in the config -> candidate scores."""
