"""Clusters the patches around density peaks and merges each cluster by attention; one visual token each.

SeTok (arXiv 2406.05127). From its code (Apache-2.0): a two-dimensional sine code is added to the patches;
DPC-KNN finds the centres, patches whose density times distance to a denser patch (``gamma``) is above a
threshold, so every picture has as many as it needs; a patch belongs to the nearest centre; an inner block
attends inside each cluster, the mean of a cluster goes through an outer block over all clusters and a linear
layer. A block is ``depth`` attentions behind one shared layer norm, then one perceptron. Nothing above the
threshold: as many of the largest ``gamma`` as there are neighbours.

Ours: equal densities are ordered by index, where the code adds noise; the densest patch of a picture has the
largest distance as its own, as in the textbook; neighbours are the code's share (64 of 729) of the patches;
patches are normalised before they are compared (``normalise=false``: as in the code), and the default
threshold fits that. A budget takes the largest ``gamma`` instead of those above the threshold; one for every
patch leaves the patches as they are. A token stands in the slot of its cluster's centre: raster order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.pruning.blocks import (
    LayerNorm,
    Linear,
    Perceptron,
    SelfAttention,
    start_identity,
    start_linear,
    start_norm,
)
from foveate.pruning.budget import Budget, resolve_count
from foveate.pruning.evidence import DecoderEvidence, EncoderEvidence, ModelShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, inverse, select_top
from foveate.pruning.spec import MethodConfig, Site, option
from foveate.runtime.errors import UsageError

SITES = ("encoder",)
PAPER = "arXiv 2406.05127"
TITLE = "SeTok"
KIND = "trained"

_FAR = 1e30
"""Distance to a patch that does not count: finite, and above every real one."""


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Options of setok; an adapter is trained for the last three."""

    threshold: float = option(0.45, "a patch with gamma above this is the centre of a cluster", low=0)
    neighbours: int | None = option(
        None, "patches whose distances make the density, itself included (none = 64 of 729)", low=1
    )
    normalise: bool = option(True, "compare patches behind a layer norm without weights")
    depth: int = option(2, "attentions of each block", low=1)
    heads: int = option(2, "heads of each attention", low=1)
    inner: int | None = option(None, "width of the perceptrons (none = four times the features')", low=1)


class Block(nn.Module):
    """Attentions that share one layer norm, then one perceptron."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.attentions = nn.ModuleList(SelfAttention(width, config.heads) for _ in range(config.depth))
        self.mlp = Perceptron(width, 4 * width if config.inner is None else config.inner)

    def forward(self, x: Tensor, sees: Tensor) -> Tensor:
        """Rows ``[b, n, c]``; ``sees`` bool ``[b, n, n]`` or ``[b, 1, n]``."""
        for attention in self.attentions:
            x = x + attention(self.norm1(x), sees)
        rows: Tensor = x + self.mlp(self.norm2(x))
        return rows


class Method(PruningMethod):
    """Finds centres, gives every patch to the nearest, merges clusters, keeps the centres' slots."""

    sites = (Site.ENCODER,)
    trained = True
    weight_options = ("depth", "heads", "inner")

    def __init__(self, config: Config, site: Site | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def build(self, shape: ModelShape) -> None:
        """The merger: inner and outer block, and the linear layer behind them.

        Raises:
            UsageError: visual tokens that are no single grid, or a width that the heads do not divide.
        """
        width, self.grid = shape.feature_width, shape.grid
        if self.grid is None:
            raise UsageError(
                "Method 'setok' codes the place of every patch in one picture.",
                found="visual tokens of several tiles, or of no fixed grid",
                wanted="one square picture: llava or vipllava",
                mend="Use a method without places, such as divprune or visionzip.",
            )
        if width % self.config.heads:
            raise UsageError(
                "Method 'setok' cannot split the features into its heads.",
                found=f"heads={self.config.heads}, {width} channels",
                wanted=f"a divisor of {width}",
                mend="Ask for another number of heads.",
            )
        self.inner, self.outer = Block(width, self.config), Block(width, self.config)
        self.out_proj = Linear(width, width)

    def forward(
        self, evidence: EncoderEvidence | DecoderEvidence, budget: Budget, seed: Tensor | None = None
    ) -> Selection:
        """Selection over the candidates ``[b, n]``: the centres; their rows are the merged clusters."""
        assert isinstance(evidence, EncoderEvidence)
        patches = evidence.features.float()
        selection, owner = self.cluster(patches, budget)
        everything = (budget.given() & (selection.count >= patches.shape[1])).reshape(-1, 1, 1)  # b 1 1
        return selection._replace(features=torch.where(everything, patches, self.merge(patches, owner)))

    def cluster(self, patches: Tensor, budget: Budget) -> tuple[Selection, Tensor]:
        """The centres, and for each of ``patches [b, n, c]`` its centre's index, int64 ``[b, n]``."""
        n, c = patches.shape[1:]
        x = functional.layer_norm(patches, (c,)) if self.config.normalise else patches
        square = square_distances(x + self.places(patches))
        near = self.near(n)
        gamma, distance = peaks(square, near)
        passed = (gamma > self.config.threshold).to(torch.int64).sum(dim=-1)  # b
        rule = torch.where(passed > 0, passed, torch.zeros_like(passed) + near)
        # Those above the threshold are the largest: one ranking serves rule, fallback and budget.
        selection = select_top(gamma, resolve_count(budget, rule, n))
        return selection, owners(distance, inverse(selection.order) < selection.count.unsqueeze(-1))

    def merge(self, patches: Tensor, owner: Tensor) -> Tensor:
        """Merged clusters ``[b, n, c]`` in their centres' slots; the other rows mean nothing."""
        inside = self.inner(patches + self.places(patches), owner.unsqueeze(2) == owner.unsqueeze(1))
        slot = torch.arange(patches.shape[1], device=patches.device).unsqueeze(-1)  # n 1
        members = (owner.unsqueeze(1) == slot).to(inside.dtype)  # b n(slot) n(member)
        size = members.sum(dim=-1, keepdim=True)  # b n 1
        mean = torch.matmul(members, inside) / torch.maximum(size, torch.ones_like(size))
        rows: Tensor = self.out_proj(self.outer(mean, (size > 0).transpose(1, 2)))
        return rows

    def near(self, n: int) -> int:
        """Neighbours of a patch, itself included."""
        return min(-(-64 * n // 729) if self.config.neighbours is None else self.config.neighbours, n)

    def places(self, patches: Tensor) -> Tensor:
        """Sine code of row and column ``[n, c]``: sines and cosines in turn, rows in the first half."""
        assert self.grid is not None
        rows, columns = self.grid
        half = 2 * (-(-patches.shape[-1] // 4))
        turn = torch.arange(0, half, 2, dtype=torch.float32, device=patches.device) / half
        frequency = torch.pow(torch.full_like(turn, 10000.0), -turn)  # half/2
        place = torch.arange(rows * columns, device=patches.device)
        codes = []
        for at in (place // columns, place % columns):
            angle = at.to(torch.float32).unsqueeze(-1) * frequency
            codes.append(torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(1))  # n half
        return torch.cat(codes, dim=-1)[:, : patches.shape[-1]]


def square_distances(x: Tensor) -> Tensor:
    """Mean squared difference over the channels between rows of ``x [b, n, c]``, ``[b, n, n]``."""
    x = x - x.mean(dim=1, keepdim=True)  # moves nothing, and keeps the squares small
    norm = (x * x).sum(dim=-1)  # b n
    product = torch.matmul(x, x.transpose(1, 2))
    # Both halves alike to the last bit: mutual neighbours must tie, wherever a kernel's blocks end.
    square = norm.unsqueeze(2) + norm.unsqueeze(1) - (product + product.transpose(1, 2))
    place = torch.arange(x.shape[1], device=x.device)
    apart = place.unsqueeze(-1) != place  # n n
    square = torch.maximum(square, torch.zeros_like(square)) / x.shape[-1]
    return torch.where(apart, square, torch.zeros_like(square))


def peaks(square: Tensor, near: int) -> tuple[Tensor, Tensor]:
    """``gamma [b, n]``, density times distance to the nearest denser patch; all distances ``[b, n, n]``."""
    distance = torch.sqrt(square)
    nearest = torch.sort(square, dim=-1)[0][:, :, :near]  # b n near
    density = torch.exp(-nearest.mean(dim=-1))  # b n
    place = torch.arange(square.shape[1], device=square.device)
    mine, other = density.unsqueeze(2), density.unsqueeze(1)
    denser = (other > mine) | ((other == mine) & (place < place.unsqueeze(-1)))  # b n n
    largest = distance.amax(dim=(1, 2)).reshape(-1, 1, 1).expand_as(distance)
    gap = torch.where(denser, distance, largest).amin(dim=-1)  # b n
    return density * gap, distance


def owners(distance: Tensor, centre: Tensor) -> Tensor:
    """Index of the nearest centre ``[b, n]``; centres own themselves, equal distances go to the lower."""
    place = torch.arange(centre.shape[1], device=centre.device)
    reach = torch.where(centre.unsqueeze(1), distance, torch.full_like(distance, _FAR))
    own = (place.unsqueeze(-1) == place) & centre.unsqueeze(1)
    return torch.argmin(torch.where(own, torch.full_like(distance, -1.0), reach), dim=-1)


def start(method: Method) -> None:
    """First weights for training: a token is the mean of its cluster."""
    for block in (method.inner, method.outer):
        for norm in (block.norm1, block.norm2):
            start_norm(norm)
        for attention in block.attentions:
            assert isinstance(attention, SelfAttention)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                start_linear(linear)
            start_linear(attention.out_proj, 0.0)
        start_linear(block.mlp.fc1)
        start_linear(block.mlp.fc2, 0.0)
    start_identity(method.out_proj)
