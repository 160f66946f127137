"""Keeps the patches that CLS attends to most, on average over the encoder's last layers.

VTC-CLS, "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs" (arXiv 2412.05819).

Paper facts: the score is the true CLS attention, mean over heads, added up over an ensemble of layers that
ends with the one that writes the features (``depth=3`` is the paper's best; its command line has another
default); a fixed number of patches stays, in raster order, before the connector. Adding and averaging the
layers rank alike. Ours: the kept share when no budget is given (128 of 576, one of the paper's three), and
``spread`` for items of several tiles, which the paper does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.budget import Budget, ratio_count, resolve_count
from foveate.pruning.curve import share_tiles
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, EncoderShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.methods.cls_knee import cls_mean
from foveate.pruning.selection import Selection, select_ranked, sort_scores
from foveate.pruning.spec import SPREADS, MethodConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("encoder",)
PAPER = "arXiv 2412.05819"
TITLE = "VTC-CLS"
KIND = "training-free"


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of vtc-cls."""

    ratio: float = option(0.2222, "kept share without a budget: 128 of 576", low=0, high=1, open_low=True)
    depth: int = option(3, "layers in the ensemble, the last of them writes the features", low=1)
    layers: tuple[int, ...] | None = option(
        None, "encoder layers of the ensemble by name (none = by depth)", low=0
    )
    spread: str = option(
        "image", "rank over the whole item, or give every tile (crop, frame) its share", choices=SPREADS
    )

    def __post_init__(self) -> None:
        """Refuses a depth that named layers would hide (``UsageError``)."""
        super().__post_init__()
        self.uses("depth", layers=None)  # type: ignore[arg-type]  # a value like any other


class Method(PruningMethod):
    """Sums the CLS attention of an ensemble of layers and keeps the best patches."""

    sites = (Site.ENCODER,)
    ranks = True

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def layers(self, shape: EncoderShape) -> tuple[int, ...]:
        """The ensemble; its deepest layer is the one that writes the features.

        Raises:
            UsageError: an encoder without CLS, or a layer that it does not have.
        """
        if not shape.has_cls:
            raise UsageError(
                "Method 'vtc-cls' ranks patches by the attention of CLS, and this vision encoder has none.",
                found="an encoder without CLS",
                wanted="an encoder with CLS, such as CLIP or InternViT",
                mend="Use saliency-knee, or visionzip with score=received.",
            )
        end = max(shape.feature_layer, 1)
        layers = self.config.layers or range(max(end - self.config.depth, 0), end)
        if max(layers) >= shape.num_layers:
            raise UsageError(
                f"Method 'vtc-cls' asks for encoder layer {max(layers)}.",
                found=f"layer {max(layers)}",
                wanted=f"0 to {shape.num_layers - 1}",
                mend="Choose layers that the vision encoder has.",
            )
        return tuple(sorted(set(layers)))

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``."""
        assert isinstance(evidence, EncoderEvidence)
        score = evidence.pool(cls_mean(evidence))
        index = sort_scores(score)[1]
        size = torch.ones_like(index).sum(dim=-1)
        count = resolve_count(budget, ratio_count(self.config.ratio, size), size)
        if self.config.spread == "tile":
            index = share_tiles(index, evidence.tile)
        return select_ranked(index, count)._replace(score=score)
