"""The vision transformers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (arXiv 2409.12191, 2502.13923), all in one.

Pictures keep their shape. Patches come in cells of `merge x merge`, which later are one visual token each.
Axes: `f` frames (pairs of frames of a video), `n` cells of a frame in raster order, `u` patches of a cell,
`p = n * u` patches of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.attention_ops import full_attention, rotary
from foveate.export.blocks.linear import Linear
from foveate.export.blocks.mlp import MLP
from foveate.export.blocks.norm import LayerNorm, RMSNorm
from foveate.export.config import Reader
from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderShape

NORM_EPS = 1e-6


@dataclass(frozen=True)
class QwenVisionConfig:
    """Sizes and switches of an encoder.

    Attributes:
        gated: Qwen2.5's layers, with RMSNorm and a gated MLP; others have LayerNorm and two linear layers.
        patch_bias: the patch embedding has a bias.
        window: cells along one side of an attention window; 0 for none.
        full_layers: layers whose patches see their whole frame; the others see their window.
        position_side: side of the learnt table of positions; 0 for none.
        deepstack: layers whose outputs go to the decoder's first layers, too.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    activation: str
    out_size: int
    rope_theta: float
    full_layers: tuple[int, ...]
    gated: bool = False
    patch_bias: bool = False
    window: int = 0
    position_side: int = 0
    deepstack: tuple[int, ...] = ()

    @staticmethod
    def read(vision: Mapping[str, Any], *, out_key: str, width_key: str, **traits: Any) -> QwenVisionConfig:
        """Reads what all three have under the same keys; `traits` are the other fields.

        Raises:
            CheckpointError: a value is not usable.
        """
        reader = Reader(vision, "vision_config")
        config = QwenVisionConfig(
            hidden_size=reader.integer(width_key),
            num_layers=reader.integer("depth"),
            num_heads=reader.integer("num_heads", 16),
            patch_size=reader.integer("patch_size"),
            temporal_patch_size=reader.integer("temporal_patch_size", 2),
            merge_size=reader.integer("spatial_merge_size", 2),
            activation=reader.text("hidden_act"),
            out_size=reader.integer(out_key, 3584),
            rope_theta=_rope_theta(reader),
            **traits,
        )
        find_activation(config.activation)
        if reader.integer("in_channels", 3) != 3:
            raise reader.refused("in_channels", vision["in_channels"], "3: pictures are RGB")
        reader.require_divisible(width_key, config.hidden_size, "4 * num_heads", 4 * config.num_heads)
        return config

    @property
    def unit(self) -> int:
        """Patches of a cell."""
        return self.merge_size**2

    @property
    def cell_width(self) -> int:
        """Width of a visual token before the merger: its patches side by side."""
        return self.hidden_size * self.unit

    @property
    def feature_width(self) -> int:
        """Width of a candidate: the last layer's cell and those of DeepStack."""
        return self.cell_width * (1 + len(self.deepstack))

    @property
    def patch_width(self) -> int:
        """Numbers in a patch: channels, frames, rows, columns."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def shape(self) -> EncoderShape:
        """What methods have to know."""
        return EncoderShape(self.num_layers, self.num_layers, self.full_layers, has_cls=False)


def _rope_theta(reader: Reader) -> float:
    rope = Reader(reader.section_of("rope_parameters", {}), "vision_config.rope_parameters")
    return rope.positive("rope_theta", 10000.0)


def layer_numbers(reader: Reader, key: str, default: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """A list of encoder layers, ascending."""
    given = reader.section.get(key)
    layers = default if given is None else given
    whole = isinstance(layers, (list, tuple)) and all(type(i) is int and i >= 0 for i in layers)
    if not whole or max(layers, default=0) >= num_layers:
        raise reader.refused(key, given, f"a list of layer numbers below depth ({num_layers})")
    return tuple(sorted(set(layers)))


def qwen_vision_inputs(config: QwenVisionConfig) -> tuple[TensorSpec, ...]:
    """Patches and geometry of one image or video, made by the host."""
    specs = [
        TensorSpec("patches", "float32", ("frames", "cells", config.unit, config.patch_width)),
        TensorSpec("coords", "int64", ("cells", config.unit, 2)),
    ]
    if config.window:
        specs += [
            TensorSpec("window_index", "int64", ("windows", config.window**2)),
            TensorSpec("window_place", "int64", ("cells",)),
        ]
    if config.position_side:
        specs += [
            TensorSpec("table_index", "int64", ("cells", config.unit, 4)),
            TensorSpec("table_weight", "float32", ("cells", config.unit, 4)),
        ]
    return tuple(specs)


@dataclass(frozen=True)
class Trace:
    """What the encoder leaves.

    Attributes:
        hidden: `[f, p, c]`, output of the last layer.
        levels: the same of each DeepStack layer.
        query, key: `[f, p, c]` of the wanted layers, rotated.
    """

    hidden: Tensor
    levels: list[Tensor]
    query: dict[int, Tensor]
    key: dict[int, Tensor]


class Windows:
    """Cuts frames into attention windows and puts them together again.

    `index [w, m]` names the cells of each window, -1 where it hangs over the edge; `place [n]` says where
    each cell went in `w * m`. All windows are of one size, so memory grows with `p`, not with its square.
    """

    def __init__(self, index: Tensor, place: Tensor, frames: int, unit: int) -> None:
        w, m = index.shape
        self.slots = torch.where(index < 0, 0, index).reshape(w * m)
        self.place, self.frames, self.unit = place, frames, unit
        self.windows, self.length = w, m * unit
        inside = (index >= 0)[:, :, None].expand(w, m, unit).reshape(1, w, 1, 1, m * unit)
        mask = inside.expand(frames, w, 1, m * unit, m * unit)
        self.mask = mask.reshape(frames * w, 1, m * unit, m * unit)  # f w 1 q k -> (f w) 1 q k

    def split(self, x: Tensor) -> Tensor:
        """`[f, p, c]` to `[f * w, m * u, c]`."""
        f, p, c = x.shape
        cells = x.reshape(f, p // self.unit, self.unit * c).index_select(1, self.slots)  # f (w m) (u c)
        return cells.reshape(f * self.windows, self.length, c)  # f (w m) (u c) -> (f w) (m u) c

    def join(self, x: Tensor) -> Tensor:
        """`[f * w, m * u, c]` to `[f, p, c]`."""
        c, n = x.shape[2], self.place.shape[0]
        slots = self.slots.shape[0]
        cells = x.reshape(self.frames, slots, self.unit * c).index_select(1, self.place)  # f n (u c)
        return cells.reshape(self.frames, n * self.unit, c)  # f n (u c) -> f (n u) c


class Attention(nn.Module):
    def __init__(self, config: QwenVisionConfig, *, windowed: bool) -> None:
        super().__init__()
        c = config.hidden_size
        self.qkv = Linear(c, 3 * c, bias=True)
        self.proj = Linear(c, c, bias=True)
        self.num_heads, self.windowed = config.num_heads, windowed

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], windows: Windows | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mixed values, and query and key as they meet, all `[f, p, c]`."""
        joined, c = self.qkv(x), x.shape[2]
        query = rotary(joined[:, :, :c], *rotation, self.num_heads)
        key = rotary(joined[:, :, c : 2 * c], *rotation, self.num_heads)
        value = joined[:, :, 2 * c :]
        if windows is not None and self.windowed:
            query_w, key_w, value_w = (windows.split(y) for y in (query, key, value))
            mixed = windows.join(full_attention(query_w, key_w, value_w, self.num_heads, windows.mask))
        else:
            mixed = full_attention(query, key, value, self.num_heads)
        return self.proj(mixed), query, key


class GatedMLP(nn.Module):
    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=True)
        self.activation = find_activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, config: QwenVisionConfig, *, windowed: bool) -> None:
        super().__init__()
        norm = RMSNorm if config.gated else LayerNorm
        self.norm1 = norm(config.hidden_size, NORM_EPS)
        self.norm2 = norm(config.hidden_size, NORM_EPS)
        self.attn = Attention(config, windowed=windowed)
        self.mlp = (
            GatedMLP(config)
            if config.gated
            else MLP(config.hidden_size, config.intermediate_size, config.activation)
        )

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], windows: Windows | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, query, key = self.attn(self.norm1(x), rotation, windows)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), query, key


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as a matrix product; the weight is stored as it comes."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        c, size = config.hidden_size, config.patch_size
        shape = (c, 3, config.temporal_patch_size, size, size)
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(c), requires_grad=False) if config.patch_bias else None

    def forward(self, patches: Tensor) -> Tensor:
        y = patches @ self.weight.flatten(1).t()  # c (ch t y x) -> (ch t y x) c
        return y if self.bias is None else y + self.bias


class PatchRope(nn.Module):
    """Angles of patches: the first half of a head's angles turns with the row, the other with the column."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        quarter = config.hidden_size // config.num_heads // 4
        self.inverse_frequency = nn.Parameter(torch.empty(quarter), requires_grad=False)

    def forward(self, coords: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """`[n, u, 2]` to cosines and sines `[f, p, head_dim / 2]`."""
        n, u, axes = coords.shape
        angle = coords.to(torch.float32)[:, :, :, None] * self.inverse_frequency  # n u 2 e
        angle = angle.reshape(1, n * u, axes * self.inverse_frequency.shape[0])  # n u 2 e -> 1 (n u) (2 e)
        return angle.cos().expand(frames, -1, -1), angle.sin().expand(frames, -1, -1)


class PositionTable(nn.Module):
    """Learnt positions of a square grid, blended between four neighbours for a grid of any other shape."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        shape = (config.position_side**2, config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)

    def forward(self, index: Tensor, weight: Tensor) -> Tensor:
        """Neighbours and shares `[n, u, 4]` to positions `[n, u, c]`."""
        return (functional.embedding(index, self.weight) * weight[:, :, :, None]).sum(dim=2)


class QwenVision(nn.Module):
    """Patches of one image or video to the last layer's hidden state, with evidence of `attention_at`."""

    def __init__(self, config: QwenVisionConfig, attention_at: Sequence[int]) -> None:
        super().__init__()
        self.config, self.attention_at = config, tuple(attention_at)
        self.patch_embed = PatchEmbedding(config)
        self.rope = PatchRope(config)
        if config.position_side:
            self.pos_embed = PositionTable(config)
        self.layers = nn.ModuleList(
            Layer(config, windowed=bool(config.window) and i not in config.full_layers)
            for i in range(config.num_layers)
        )

    def forward(self, feeds: dict[str, Tensor]) -> Trace:
        x = self.patch_embed(feeds["patches"])  # f n u c
        if self.config.position_side:
            x = x + self.pos_embed(feeds["table_index"], feeds["table_weight"])
        f, n, u, c = x.shape
        x = x.reshape(f, n * u, c)  # f n u c -> f (n u) c
        rotation = self.rope(feeds["coords"], f)
        windows = None
        if self.config.window:
            windows = Windows(feeds["window_index"], feeds["window_place"], f, u)
        trace = Trace(x, [], {}, {})
        for i, layer in enumerate(self.layers):
            x, query, key = layer(x, rotation, windows)
            if i in self.attention_at:
                trace.query[i], trace.key[i] = query, key
            if i in self.config.deepstack:
                trace.levels.append(x)
        return Trace(x, trace.levels, trace.query, trace.key)


def vision_constants(config: QwenVisionConfig) -> dict[str, Tensor]:
    """The encoder's computed parameters, by their names in the graphs."""
    half = config.hidden_size // config.num_heads // 2
    exponent = torch.arange(0, half, 2, dtype=torch.float32) / half
    return {"vision.encoder.rope.inverse_frequency": 1.0 / config.rope_theta**exponent}
