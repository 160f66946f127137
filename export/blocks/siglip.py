"""The SigLIP vision transformer (arXiv 2303.15343), as far as a VLM reads it: CLIP's layers without CLS."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.clip import ClipConfig, Encoder, Layer
from foveate.export.blocks.linear import Linear
from foveate.export.blocks.norm import LayerNorm
from foveate.export.config import Reader


@dataclass(frozen=True)
class SiglipConfig(ClipConfig):
    """Sizes of the vision tower; the defaults are transformers' `SiglipVisionConfig`.

    `use_head`: the checkpoint has the attention-pooling head, whose query says how much each patch matters.
    """

    use_head: bool = True

    @staticmethod
    def read(vision: Mapping[str, Any]) -> SiglipConfig:
        """Reads a vision configuration; raises `CheckpointError` naming the key that does not fit."""
        reader = Reader(vision, "vision_config")
        config = SiglipConfig(
            hidden_size=reader.integer("hidden_size", 768),
            intermediate_size=reader.integer("intermediate_size", 3072),
            num_layers=reader.integer("num_hidden_layers", 12),
            num_heads=reader.integer("num_attention_heads", 12),
            num_channels=reader.integer("num_channels", 3),
            image_size=reader.integer("image_size", 224),
            patch_size=reader.integer("patch_size", 16),
            activation=reader.text("hidden_act", "gelu_pytorch_tanh"),
            layer_norm_eps=reader.number("layer_norm_eps", 1e-6),
            use_head=reader.flag("vision_use_head", True),
        )
        find_activation(config.activation)
        reader.require_divisible("hidden_size", config.hidden_size, "num_attention_heads", config.num_heads)
        if config.patch_size > config.image_size:
            raise reader.refused("patch_size", config.patch_size, f"at most image_size ({config.image_size})")
        if config.num_channels != 3:
            raise reader.refused("num_channels", config.num_channels, "3: pictures are RGB")
        return config

    def is_unread(self, name: str) -> bool:
        """Whether a tensor of the tower (prefix removed) may stay unread: late layers, the head, buffers."""
        if super().is_unread(name):
            return True
        head = r"head\.(?:probe|attention\.(?:in_proj\.|out_proj\.)\w+|layernorm\.\w+|mlp\.fc[12]\.\w+)$"
        return bool(re.match(head, name))


def rename_head(name: str) -> str:
    """Gives the head's packed projection a module of its own: `in_proj_weight` becomes `in_proj.weight`."""
    return re.sub(r"\.in_proj_(weight|bias)$", r".in_proj.\1", name)


@dataclass(frozen=True)
class SiglipTrace:
    """What the encoder leaves for a connector and a pruning head.

    Attributes:
        hidden: per requested depth `i`, the input of layer `i` `[b, n, c]`, transformers' `hidden_states[i]`.
        query, key: per requested layer, the raw outputs of its `q_proj` and `k_proj` `[b, n, c]`.
        normed: the last layer's output behind the last norm, transformers' `last_hidden_state`; None when not
            asked for.
        pooled: `[b, n]` probabilities of the pooling head's query, mean over heads; None when not asked for.
    """

    hidden: dict[int, Tensor]
    query: dict[int, Tensor]
    key: dict[int, Tensor]
    normed: Tensor | None = None
    pooled: Tensor | None = None


class PatchEmbedding(nn.Module):
    """The strided convolution, with a shift, that turns `[b, 3, height, width]` into patches `[b, n, c]`.

    What is left over at the right and at the bottom is not read.
    """

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        size = config.patch_size
        shape = (config.hidden_size, config.num_channels, size, size)
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)
        self.stride = size

    def forward(self, pixels: Tensor) -> Tensor:
        patches = functional.conv2d(pixels, self.weight, self.bias, stride=self.stride)
        return patches.flatten(2).transpose(1, 2)  # b c rows columns -> b n c, raster order


class PositionEmbedding(nn.Module):
    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_patches, config.hidden_size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Embeddings(nn.Module):
    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.position_embedding = PositionEmbedding(config)

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.position_embedding(self.patch_embedding(pixels))
        return x


class PoolingAttention(nn.Module):
    """The packed projection of `torch.nn.MultiheadAttention`: query, key and value side by side."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        c = config.hidden_size
        self.in_proj = Linear(c, 3 * c, bias=True, bare=True)


class PoolingHead(nn.Module):
    """One learnt query that reads all patches: its probabilities, not what it reads."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size), requires_grad=False)
        self.attention = PoolingAttention(config)
        self.num_heads = config.num_heads

    def forward(self, x: Tensor) -> Tensor:
        """`[b, n, c]` behind the last norm to `[b, n]`, the mean over heads; rows sum to 1.

        The query is the same for all patches, so it is put into the key projection, `[c, c]` to `[c, h]`,
        once. The keys' shift adds the same to all patches, and the softmax takes it out.
        """
        c, h = x.shape[2], self.num_heads
        weight, bias = self.attention.in_proj.weight, self.attention.in_proj.bias
        assert bias is not None
        query = self.probe[0] @ weight[:, :c] + bias[:c]  # 1 c
        by_head = weight[:, c : 2 * c] * query * (c // h) ** -0.5
        reader = by_head.reshape(c, h, c // h).sum(dim=2)  # c (h e) -> c h e -> c h
        return torch.softmax(x @ reader, dim=1).mean(dim=2)  # b n h -> b n


class SiglipVision(nn.Module):
    """SigLIP's tower cut off behind the last layer that somebody reads.

    `forward` returns the inputs of the layers in `hidden_at` (layer `i`'s input is transformers'
    `hidden_states[i]`) and the raw queries and keys of the layers in `attention_at`. `normed` and `pooled`
    ask for what comes behind the last layer, and so run all of them.
    """

    def __init__(
        self,
        config: SiglipConfig,
        hidden_at: Sequence[int],
        attention_at: Sequence[int],
        *,
        normed: bool = False,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        assert config.use_head or not pooled, "no pooling head: encoder_shape says so"
        self.hidden_at, self.attention_at = tuple(hidden_at), tuple(attention_at)
        self.whole = normed or pooled
        self.run_depth = max(*self.hidden_at, *self.attention_at, config.num_layers if self.whole else 0, 0)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, max(self.run_depth, max(self.attention_at, default=-1) + 1))
        if self.whole:
            self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = PoolingHead(config) if pooled else None

    def forward(self, pixels: Tensor) -> SiglipTrace:
        x = self.embeddings(pixels)
        hidden: dict[int, Tensor] = {}
        queries: dict[int, Tensor] = {}
        keys: dict[int, Tensor] = {}
        for i in range(self.run_depth + 1):
            if i in self.hidden_at:
                hidden[i] = x
            if i < self.run_depth:
                x, query, key = self.encoder.layers[i](x)
            elif i in self.attention_at:
                layer = self.encoder.layers[i]
                assert isinstance(layer, Layer)
                query, key = layer.project(x)
            if i in self.attention_at:
                queries[i], keys[i] = query, key
        if not self.whole:
            return SiglipTrace(hidden, queries, keys)
        x = self.post_layernorm(x)
        return SiglipTrace(hidden, queries, keys, x, None if self.head is None else self.head(x))
