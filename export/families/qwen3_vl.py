"""Qwen3-VL: encoder with a learnt table of positions, DeepStack, Qwen3 with three-axis positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.linear import Linear
from foveate.export.blocks.norm import LayerNorm
from foveate.export.blocks.qwen_vision import NORM_EPS, QwenVisionConfig, layer_numbers
from foveate.export.blocks.qwen_vl import (
    QwenVlConfig,
    Vision,
    candidates,
    constants,
    encoder_shape,
    is_unused,
    read_qwen_vl,
    rename_weight,
    runtime_facts,
    text_section,
    vision_inputs,
)
from foveate.export.config import Reader
from foveate.export.families import Facts

__all__ = [
    "FACTS",
    "Config",
    "Connector",
    "Vision",
    "candidates",
    "constants",
    "encoder_shape",
    "is_unused",
    "rename_weight",
    "runtime_facts",
    "vision_inputs",
]

FACTS: Final = Facts(
    title="Qwen3-VL",
    checkpoints=("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
    text_models=("qwen3_vl_text",),
    scores=("received", "prompt"),
    default_plan=("saliency-knee", "text-relevance@2"),
    visual_tokens="one per 32 x 32 pixels of the picture as the image processor scales it",
    video="frames in pairs, each pair introduced by its time",
    position_axes=3,
    position_modes=("original",),
    differs=(
        "video frames are scaled by Pillow, one by one; torchvision may round a pixel otherwise",
        "which frames of a video are looked at is the caller's choice, not the video processor's",
        "videos have no bound on each frame (transformers' cap_pixels_per_frame)",
        "the times in a video's text are those of frames at an even pace",
        "mixture-of-experts checkpoints (model_type qwen3_vl_moe) are refused",
    ),
)
_VISION: Final[Mapping[str, Any]] = {
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "patch_size": 16,
}
_TEXT: Final[Mapping[str, Any]] = {"rope_theta": 5e5}


@dataclass(frozen=True)
class Config(QwenVlConfig):
    """A Qwen3-VL checkpoint's configuration."""

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        given = Reader(config, "config").section_of("vision_config", {})
        reader = Reader({**_VISION, **given}, "vision_config")
        depth, table = reader.integer("depth"), reader.integer("num_position_embeddings", 2304)
        side = math.isqrt(table)
        if side**2 != table:
            raise reader.refused("num_position_embeddings", table, "the square of a whole number")
        deepstack = layer_numbers(reader, "deepstack_visual_indexes", (8, 16, 24), depth)
        listed = reader.section.get("deepstack_visual_indexes") or deepstack
        if tuple(listed) != deepstack:
            raise reader.refused("deepstack_visual_indexes", listed, "ascending layer numbers")
        vision = QwenVisionConfig.read(
            reader.section,
            width_key="hidden_size",
            out_key="out_hidden_size",
            intermediate_size=reader.integer("intermediate_size", 4304),
            full_layers=tuple(range(depth)),
            patch_bias=True,
            position_side=side,
            deepstack=deepstack,
        )
        fields = read_qwen_vl(config, text_section(config, "qwen3_vl_text", _TEXT), vision)
        return Config(**fields, tokens_per_second=None)


class Merger(nn.Module):
    """A norm, of each patch or of the whole cell, then two linear layers: `[k, u * c] -> [k, d]`."""

    def __init__(self, config: QwenVlConfig, *, by_patch: bool) -> None:
        super().__init__()
        vision = config.vision
        self.norm_width = vision.hidden_size if by_patch else vision.cell_width
        self.norm = LayerNorm(self.norm_width, NORM_EPS)
        self.linear_fc1 = Linear(vision.cell_width, vision.cell_width, bias=True)
        self.linear_fc2 = Linear(vision.cell_width, vision.out_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        k, width = x.shape
        normed = self.norm(x.reshape(k, width // self.norm_width, self.norm_width)).reshape(k, width)
        y: Tensor = self.linear_fc2(nn.functional.gelu(self.linear_fc1(normed)))
        return y


class Connector(Merger):
    """The main merger and DeepStack's: `[k, (1 + levels) * u * c] -> [k, (1 + levels) * d]`."""

    def __init__(self, config: QwenVlConfig) -> None:
        super().__init__(config, by_patch=True)
        self.deepstack = nn.ModuleList(Merger(config, by_patch=False) for _ in config.vision.deepstack)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1] // (1 + len(self.deepstack))
        rows = [super().forward(x[:, :width])]
        for i, merger in enumerate(self.deepstack, start=1):
            rows.append(merger(x[:, i * width : (i + 1) * width]))
        return torch.cat(rows, dim=1)  # (1 + levels) x k d -> k ((1 + levels) d)
