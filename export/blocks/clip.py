"""The CLIP vision transformer (arXiv 2103.00020), as far as a VLM reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.attention_ops import full_attention
from foveate.export.blocks.linear import Linear
from foveate.export.blocks.mlp import MLP
from foveate.export.blocks.norm import LayerNorm
from foveate.export.config import Reader


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the vision tower; the defaults are transformers' `CLIPVisionConfig`."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    activation: str
    layer_norm_eps: float

    @staticmethod
    def read(vision: Mapping[str, Any]) -> ClipConfig:
        reader = Reader(vision, "vision_config")
        config = ClipConfig(
            hidden_size=reader.integer("hidden_size", 768),
            intermediate_size=reader.integer("intermediate_size", 3072),
            num_layers=reader.integer("num_hidden_layers", 12),
            num_heads=reader.integer("num_attention_heads", 12),
            num_channels=reader.integer("num_channels", 3),
            image_size=reader.integer("image_size", 224),
            patch_size=reader.integer("patch_size", 32),
            activation=reader.text("hidden_act", "quick_gelu"),
            layer_norm_eps=reader.number("layer_norm_eps", 1e-5),
        )
        find_activation(config.activation)
        reader.require_divisible("hidden_size", config.hidden_size, "num_attention_heads", config.num_heads)
        if config.patch_size > config.image_size:
            raise reader.refused("patch_size", config.patch_size, f"at most image_size ({config.image_size})")
        if config.num_channels != 3:
            raise reader.refused("num_channels", config.num_channels, "3: pictures are RGB")
        return config

    @property
    def grid(self) -> int:
        """Patches along one side; CLIP images are square."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    def is_unread(self, name: str) -> bool:
        """Whether a tensor of the tower (prefix removed) may stay unread: late layers, buffers."""
        layer = re.match(
            r"encoder\.layers\.(\d+)\."
            r"(?:self_attn\.(?:q|k|v|out)_proj|layer_norm[12]|mlp\.fc[12])\.(?:weight|bias)$",
            name,
        )
        if layer:
            return int(layer.group(1)) < self.num_layers
        return bool(re.match(r"post_layernorm\.(weight|bias)$|embeddings\.position_ids$", name))


@dataclass(frozen=True)
class ClipTrace:
    """What the encoder leaves for a pruning head.

    Attributes:
        hidden: per requested depth `i`, the input of layer `i` `[b, n + 1, c]` (CLS first).
        query, key: per requested layer, the raw outputs of its `q_proj` and `k_proj` `[b, n + 1, c]`.
        extra: like `hidden`, of the extra tokens `[b, m, c]`; empty without any.
    """

    hidden: dict[int, Tensor]
    query: dict[int, Tensor]
    key: dict[int, Tensor]
    extra: dict[int, Tensor]


class Attention(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        c = config.hidden_size
        self.q_proj = Linear(c, c, bias=True)
        self.k_proj = Linear(c, c, bias=True)
        self.v_proj = Linear(c, c, bias=True)
        self.out_proj = Linear(c, c, bias=True)
        self.num_heads = config.num_heads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mixed values and the raw query and key, all `[b, n + 1, c]`."""
        query, key = self.q_proj(x), self.k_proj(x)
        mixed = full_attention(query, key, self.v_proj(x), self.num_heads)
        return self.out_proj(mixed), query, key

    def beside(self, x: Tensor, own: Tensor) -> Tensor:
        """The extra rows `own [b, m, c]` look at the image's `x [b, n + 1, c]` and at each other."""
        both = torch.cat([x, own], dim=1)  # b n+1+m c
        mixed = full_attention(self.q_proj(own), self.k_proj(both), self.v_proj(both), self.num_heads)
        joined: Tensor = self.out_proj(mixed)
        return joined


class Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.activation)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed, query, key = self.self_attn(self.layer_norm1(x))
        x = x + mixed
        return x + self.mlp(self.layer_norm2(x)), query, key

    def beside(self, x: Tensor, own: Tensor) -> Tensor:
        """The extra rows `own [b, m, c]` behind this layer; `x [b, n + 1, c]` is the image's input."""
        own = own + self.self_attn.beside(self.layer_norm1(x), self.layer_norm1(own))
        fed: Tensor = self.mlp(self.layer_norm2(own))
        return own + fed

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns only the raw query and key of input `x`: the evidence of a layer that need not run."""
        normed = self.layer_norm1(x)
        return self.self_attn.q_proj(normed), self.self_attn.k_proj(normed)


class PatchEmbedding(nn.Module):
    """The strided convolution that turns `[b, 3, height, width]` into patches."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.weight = nn.Parameter(
            torch.empty(config.hidden_size, config.num_channels, size, size), requires_grad=False
        )
        self.stride = size

    def forward(self, pixels: Tensor) -> Tensor:
        patches = functional.conv2d(pixels, self.weight, stride=self.stride)
        return patches.flatten(2).transpose(1, 2)  # b c rows columns -> b n c, raster order


class PositionEmbedding(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(config.num_patches + 1, config.hidden_size), requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)
        self.patch_embedding = PatchEmbedding(config)
        self.position_embedding = PositionEmbedding(config)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels)
        cls = self.class_embedding.expand(patches.shape[0], 1, -1)
        x: Tensor = self.position_embedding(torch.cat([cls, patches], dim=1))  # b n+1 c
        return x


class Encoder(nn.Module):
    def __init__(self, config: ClipConfig, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(depth))


class ClipVision(nn.Module):
    """CLIP's tower cut off behind the last layer that somebody reads.

    `forward` returns the inputs of the layers in `hidden_at` (layer `i`'s input is transformers'
    `hidden_states[i]`) and the raw queries and keys of the layers in `attention_at`.
    """

    def __init__(self, config: ClipConfig, hidden_at: Sequence[int], attention_at: Sequence[int]) -> None:
        super().__init__()
        self.hidden_at, self.attention_at = tuple(hidden_at), tuple(attention_at)
        self.run_depth = max(*self.hidden_at, *self.attention_at, 0)
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = Encoder(config, max(self.run_depth, max(self.attention_at, default=-1) + 1))

    def forward(self, pixels: Tensor, extra: Tensor | None = None) -> ClipTrace:
        """`extra` `[m, c]`: tokens that enter beside the embedded patches, and are seen by none of them."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        own = None if extra is None else self.pre_layrnorm(extra).expand(x.shape[0], -1, -1)  # b m c
        trace = ClipTrace({}, {}, {}, {})
        for i in range(self.run_depth + 1):
            if i in self.hidden_at:
                trace.hidden[i] = x
                if own is not None:
                    trace.extra[i] = own
            if i < self.run_depth:
                layer = self.encoder.layers[i]
                assert isinstance(layer, Layer)
                own = None if own is None else layer.beside(x, own)
                x, query, key = layer(x)
            elif i in self.attention_at:
                layer = self.encoder.layers[i]
                assert isinstance(layer, Layer)
                query, key = layer.project(x)
            if i in self.attention_at:
                trace.query[i], trace.key[i] = query, key
        return trace
