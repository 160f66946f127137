"""Groups all patches around learnt tokens that ran through the vision encoder; one visual token per group.

VisToG (arXiv 2411.17773). Paper facts: learnable semantic tokens join behind the patch embedding, run through
the frozen encoder under isolated attention (no patch sees them, so the patches stay what they were), and at
the feature layer one grouping layer assigns every patch to one semantic token by a hard, Gumbel-trained
softmax over the tokens; the merged groups replace the patches. Default of GroupViT (arXiv 2202.11094), which
the paper builds on: means over ``members + 1``, the group token as residual, a perceptron behind it.

Reconstruction: semantic tokens see each other; patches are merged as they come, similarities are taken
behind layer norms; how many groups there are. Ours: a budget below the number of groups keeps the first
ones, and all patches are grouped among those: nothing is dropped. A budget above it gives all groups, and one
for every patch leaves the patches as they are.

Groups have no place in the picture: group g stands in slot g, and ``count`` slots are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.pruning.blocks import (
    LayerNorm,
    Linear,
    Perceptron,
    start_identity,
    start_linear,
    start_norm,
    weight,
)
from foveate.pruning.budget import Budget, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, ModelShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, select_mask
from foveate.pruning.spec import MethodConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("encoder",)
PAPER = "arXiv 2411.17773"
TITLE = "VisToG"
KIND = "trained"

_CLOSED = -1e30
"""Similarity of a group beyond the budget: finite, and below every real one."""


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of vistog; an adapter is trained for one number of groups."""

    groups: int | None = option(None, "learnt tokens, one group each (none = a quarter of patches)", low=1)


class Method(PruningMethod):
    """Assigns each patch to the semantic token most like it, merges the groups, keeps the first ``count``."""

    sites = (Site.ENCODER,)
    trained = True
    weight_options = ("groups",)

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def build(self, shape: ModelShape) -> None:
        """Semantic tokens ``[groups, w]`` and the grouping layer.

        Raises:
            UsageError: the encoder lets no tokens run along, features are no plain hidden state, or there are
                more groups than patches.
        """
        width, n = shape.feature_width, shape.candidates
        if n is None or not shape.encoder.has_taps or shape.encoder_width != width:
            raise UsageError(
                "Method 'vistog' lets tokens of its own run through the encoder, and takes one hidden state.",
                found="an encoder without room for them, or features joined from several layers",
                wanted="a CLIP encoder on one square picture, features from one layer: llava",
                mend="Use a method that works on the encoder's output, such as prumerge or visionzip.",
            )
        groups = -(-n // 4) if self.config.groups is None else self.config.groups
        if groups > n:
            raise UsageError(
                "Method 'vistog' has more groups than the picture has patches.",
                found=f"groups={groups}",
                wanted=f"at most {n}",
                mend="Ask for fewer groups.",
            )
        self.groups = groups
        self.token_embedding = weight(groups, shape.encoder_width)
        self.norm_group, self.norm_patch = LayerNorm(width), LayerNorm(width)
        self.q_proj, self.k_proj = Linear(width, width, bias=False), Linear(width, width, bias=False)
        self.v_proj, self.out_proj = Linear(width, width, bias=False), Linear(width, width)
        self.norm_out, self.mlp = LayerNorm(width), Perceptron(width, 4 * width)

    def extra_tokens(self) -> Tensor:
        """The semantic tokens ``[groups, w]``."""
        return self.token_embedding

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``; groups in the first slots."""
        assert isinstance(evidence, EncoderEvidence)
        assert evidence.extra is not None
        patches, tokens = evidence.features.float(), evidence.extra.float()  # b n c, b m c
        count = self.count(budget, patches)
        # argmax takes the first of equals: the lower group.
        winner = torch.argmax(self.similarity(tokens, patches, count), dim=1, keepdim=True)  # b 1 n
        group = torch.arange(self.groups, device=patches.device).unsqueeze(-1)  # m 1
        merged = self.merge(tokens, patches, (winner == group).to(patches.dtype))  # b m c
        slot = torch.arange(patches.shape[1], device=patches.device).expand_as(patches[:, :, 0])  # b n
        everything = (count > self.groups).reshape(-1, 1, 1)  # b 1 1
        padded = torch.cat([merged, patches[:, self.groups :]], dim=1)  # b n c
        rows = torch.where(everything, patches, padded)
        return select_mask(slot < count.unsqueeze(-1))._replace(features=rows)

    def count(self, budget: Budget, patches: Tensor) -> Tensor:
        """Groups of each item, int64 ``[b]``: what the budget says, at most all groups; or all patches."""
        own = torch.zeros_like(budget.keep_tokens) + self.groups
        asked = resolve_count(budget, own, patches.shape[1])
        return torch.where(asked >= patches.shape[1], asked, torch.minimum(asked, own))

    def similarity(self, tokens: Tensor, patches: Tensor, count: Tensor) -> Tensor:
        """``[b, m, n]``: how alike groups and patches are; groups from ``count [b]`` on are closed."""
        query, key = self.q_proj(self.norm_group(tokens)), self.k_proj(self.norm_patch(patches))
        alike = torch.matmul(query, key.transpose(1, 2)) * tokens.shape[-1] ** -0.5  # b m n
        group = torch.arange(self.groups, device=tokens.device)
        is_open = (group < count.unsqueeze(-1)).unsqueeze(-1)  # b m 1
        return torch.where(is_open, alike, torch.full_like(alike, _CLOSED))

    def merge(self, tokens: Tensor, patches: Tensor, assignment: Tensor) -> Tensor:
        """Merged groups ``[b, m, c]`` of patches assigned by ``[b, m, n]`` (one 1 per patch)."""
        members = assignment.sum(dim=-1, keepdim=True)  # b m 1
        total = torch.matmul(assignment, self.v_proj(patches))  # b m c
        merged = tokens + self.out_proj(total / (members + 1.0))
        rows: Tensor = merged + self.mlp(self.norm_out(merged))
        return rows


def start(method: Method) -> None:
    """First weights for training: a group is its token plus the mean of its patches."""
    torch.nn.init.normal_(method.token_embedding)
    for norm in (method.norm_group, method.norm_patch, method.norm_out):
        start_norm(norm)
    for linear in (method.q_proj, method.k_proj, method.mlp.fc1):
        start_linear(linear)
    start_identity(method.v_proj)
    start_identity(method.out_proj)
    start_linear(method.mlp.fc2, 0.0)
