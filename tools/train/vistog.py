"""Trains VisToG's semantic tokens and grouping layer.

The authors train them as LLaVA-1.5 is trained, with the connector and, in the second stage, the language
model; the encoder is frozen. Scaled down, and different where the model cannot move: see ``merging``. The
assignment is theirs: Gumbel noise, softmax over the groups, hard forwards and soft backwards, temperature 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from foveate.pruning.methods.vistog import Config, Method, start
from foveate.pruning.spec import Site
from foveate.tools.train import merging
from foveate.tools.train.bench import Bench, no_budget


@dataclass(frozen=True, kw_only=True)
class Recipe(merging.Recipe):
    """How the grouping is trained.

    Attributes:
        groups: semantic tokens; 0 for the method's own number.
        temperature: of the Gumbel softmax.
    """

    groups: int = 0
    temperature: float = 1.0
    most: int = 16


class Trainer(merging.Trainer):
    """Semantic tokens and grouping layer at the encoder."""

    name = "vistog"
    recipe: Recipe

    def __init__(self, bench: Bench, recipe: Recipe) -> None:
        super().__init__(bench, recipe)
        torch.manual_seed(recipe.seed)
        self.method = Method(Config(groups=recipe.groups or None), Site.ENCODER)
        self.method.build(bench.shape)
        start(self.method)
        self.method.requires_grad_(True)
        self.cuts = {"encoder": self.method}

    def merge(
        self, states: dict[int, Tensor], asked: Tensor, noise: torch.Generator | None
    ) -> merging.Merged:
        """Groups of every item; without ``noise`` by the largest similarity."""
        method, patches = self.method, states[self.bench.feature_layer][:, 1:]
        count = method.count(no_budget(len(asked))._replace(keep_tokens=asked), patches)
        tokens = self.beside(states)
        alike = method.similarity(tokens, patches, count)  # b m n
        if noise is None:
            soft = alike
        else:
            gumbel = -torch.log(torch.empty_like(alike).exponential_(generator=noise))
            soft = torch.softmax((alike + gumbel) / self.recipe.temperature, dim=1)
        winner = soft.argmax(dim=1, keepdim=True)
        hard = torch.zeros_like(alike).scatter(1, winner, 1.0)
        rows = method.merge(tokens, patches, hard if noise is None else hard + soft - soft.detach())
        most = int(count.max())
        used = torch.arange(most) < count.unsqueeze(-1)
        return merging.Merged(rows[:, :most], used, hard[:, :most] > 0)

    def beside(self, states: dict[int, Tensor]) -> Tensor:
        """The semantic tokens at the feature layer ``[b, m, w]``: they see the image and each other."""
        tower = self.bench.model.model.vision_tower
        own: Tensor = tower.pre_layrnorm(self.method.extra_tokens()).expand(len(states[0]), -1, -1)
        for i in range(self.bench.feature_layer):
            layer: Any = tower.encoder.layers[i]
            image, mine = layer.layer_norm1(states[i]), layer.layer_norm1(own)
            own = own + _attend(layer.self_attn, mine, torch.cat([image, mine], dim=1))
            own = own + layer.mlp(layer.layer_norm2(own))
        return own


def _attend(attention: Any, asking: Tensor, seen: Tensor) -> Tensor:
    """Attention of ``[b, m, w]`` over ``[b, r, w]`` by a layer of transformers' CLIP."""

    def heads(x: Tensor) -> Tensor:
        b, r, width = x.shape
        split = x.reshape(b, r, attention.num_heads, width // attention.num_heads)
        return split.transpose(1, 2)  # b r (h e) -> b h r e

    query, key, value = attention.q_proj(asking), attention.k_proj(seen), attention.v_proj(seen)
    mixed = functional.scaled_dot_product_attention(heads(query), heads(key), heads(value))
    rows: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return rows
