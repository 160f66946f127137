"""InternViT (arXiv 2312.14238), the vision transformer of InternVL, in transformers' form of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.attention_ops import full_attention
from foveate.export.blocks.linear import Linear
from foveate.export.blocks.mlp import MLP
from foveate.export.blocks.norm import LayerNorm, RMSNorm
from foveate.export.config import Reader

_NORMS: Final[Mapping[str, type[nn.Module]]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
# The norms of queries and keys have an epsilon of their own, which no config.json names.
_QK_EPS: Final = 1e-6


@dataclass(frozen=True)
class InternVitConfig:
    """Sizes and switches; the defaults are transformers' `InternVLVisionConfig`.

    `final_norm`: the last hidden state is normalised once more (checkpoints without mean pooling).
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    activation: str
    norm_type: str
    layer_norm_eps: float
    attention_bias: bool
    qk_norm: bool
    positions: bool
    final_norm: bool

    @staticmethod
    def read(vision: Mapping[str, Any]) -> InternVitConfig:
        reader = Reader(vision, "vision_config")
        config = InternVitConfig(
            hidden_size=reader.integer("hidden_size", 1024),
            intermediate_size=reader.integer("intermediate_size", 4096),
            num_layers=reader.integer("num_hidden_layers", 24),
            num_heads=reader.integer("num_attention_heads", 16),
            image_size=_side(reader, "image_size", 448),
            patch_size=_side(reader, "patch_size", 14),
            activation=reader.text("hidden_act", "gelu"),
            norm_type=reader.text("norm_type", "layer_norm"),
            layer_norm_eps=reader.number("layer_norm_eps", 1e-6),
            attention_bias=reader.flag("attention_bias", False),
            qk_norm=reader.flag("use_qk_norm", False),
            positions=reader.flag("use_absolute_position_embeddings", True),
            final_norm=not reader.flag("use_mean_pooling", True),
        )
        find_activation(config.activation)
        reader.require_divisible("hidden_size", config.hidden_size, "num_attention_heads", config.num_heads)
        if config.norm_type not in _NORMS:
            raise reader.refused("norm_type", config.norm_type, f"one of {', '.join(_NORMS)}")
        if config.patch_size > config.image_size:
            raise reader.refused("patch_size", config.patch_size, f"at most image_size ({config.image_size})")
        if reader.integer("num_channels", 3) != 3:
            raise reader.refused("num_channels", vision["num_channels"], "3: pictures are RGB")
        return config

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    def is_unread(self, name: str) -> bool:
        """Whether a tensor of the encoder (prefix removed) may stay unread: late layers, training."""
        layer = re.match(
            r"encoder\.layers\.(\d+)\.(?:attention\.(?:(?:q|k|v)_proj|projection_layer|[qk]_norm)"
            r"|mlp\.fc[12]|layernorm_(?:before|after)|lambda_[12])(?:\.weight|\.bias)?$",
            name,
        )
        if layer:
            return int(layer.group(1)) < self.num_layers
        return name == "embeddings.mask_token" or name.startswith("layernorm.")


def _side(reader: Reader, key: str, default: int) -> int:
    """A size that may be written as a pair; pixel shuffle wants squares."""
    given = reader.section.get(key)
    pair = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(pair) not in (1, 2) or any(side != pair[0] for side in pair):
        raise reader.refused(key, given, "one number, or two equal ones: tiles are square")
    return Reader({key: pair[0]}, reader.name).integer(key, default)


class InternVitTrace(NamedTuple):
    """The chosen hidden state `[t, p + 1, c]` (CLS first), and queries and keys `[t, p + 1, c]` by layer."""

    hidden: Tensor
    query: dict[int, Tensor]
    key: dict[int, Tensor]


class Attention(nn.Module):
    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        c = config.hidden_size
        self.q_proj = Linear(c, c, bias=config.attention_bias)
        self.k_proj = Linear(c, c, bias=config.attention_bias)
        self.v_proj = Linear(c, c, bias=config.attention_bias)
        self.projection_layer = Linear(c, c, bias=True)
        self.q_norm = RMSNorm(c, _QK_EPS) if config.qk_norm else None
        self.k_norm = RMSNorm(c, _QK_EPS) if config.qk_norm else None
        self.num_heads = config.num_heads

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key `[t, r, c]` as they enter the dot product."""
        query, key = self.q_proj(x), self.k_proj(x)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key = self.project(x)
        mixed = full_attention(query, key, self.v_proj(x), self.num_heads)
        return self.projection_layer(mixed), query, key


class Layer(nn.Module):
    """Attention and MLP, each scaled channel by channel before it joins the residual."""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        c, norm = config.hidden_size, _NORMS[config.norm_type]
        self.attention = Attention(config)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.activation)
        self.layernorm_before = norm(c, config.layer_norm_eps)
        self.layernorm_after = norm(c, config.layer_norm_eps)
        self.lambda_1 = nn.Parameter(torch.empty(c), requires_grad=False)
        self.lambda_2 = nn.Parameter(torch.empty(c), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed, query, key = self.attention(self.layernorm_before(x))
        x = x + mixed * self.lambda_1
        return x + self.mlp(self.layernorm_after(x)) * self.lambda_2, query, key

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Only the query and key of input `x`: the evidence of a layer that need not run."""
        found: tuple[Tensor, Tensor] = self.attention.project(self.layernorm_before(x))
        return found


class PatchEmbedding(nn.Module):
    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        ).requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        patches: Tensor = self.projection(pixels)
        return patches.flatten(2).transpose(1, 2)  # t c rows columns -> t p c, raster order


class Embeddings(nn.Module):
    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        c = config.hidden_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, c), requires_grad=False)
        self.patch_embeddings = PatchEmbedding(config)
        if config.positions:
            rows = config.grid**2 + 1
            self.position_embeddings = nn.Parameter(torch.empty(1, rows, c), requires_grad=False)
        self.positions = config.positions

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embeddings(pixels)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)  # t p+1 c
        return x + self.position_embeddings if self.positions else x


class Encoder(nn.Module):
    def __init__(self, config: InternVitConfig, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(depth))


class InternVit(nn.Module):
    """The encoder up to hidden state `depth` (0: embeddings), with the queries and keys of `attention_at`.

    `norm` puts the final norm behind it, which only the last hidden state of some checkpoints has.
    """

    def __init__(
        self, config: InternVitConfig, depth: int, attention_at: tuple[int, ...], *, norm: bool
    ) -> None:
        super().__init__()
        self.depth, self.attention_at = depth, attention_at
        self.last = max(depth, *attention_at, 0)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, max(self.last, max(attention_at, default=-1) + 1))
        if norm:
            self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.norm = norm

    def forward(self, pixels: Tensor) -> InternVitTrace:
        x = self.embeddings(pixels)
        hidden, queries, keys = x, dict[int, Tensor](), dict[int, Tensor]()
        for i, layer in enumerate(self.encoder.layers):
            assert isinstance(layer, Layer)
            if i < self.last:
                x, query, key = layer(x)
            else:
                query, key = layer.project(x)
            if i + 1 == self.depth:
                hidden = x
            if i in self.attention_at:
                queries[i], keys[i] = query, key
        return InternVitTrace(self.layernorm(hidden) if self.norm else hidden, queries, keys)
