"""What the Qwen-VL families share around their encoder: configuration, merger, evidence, names of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.linear import Linear
from foveate.export.blocks.norm import LayerNorm, RMSNorm
from foveate.export.blocks.qwen_vision import (
    NORM_EPS,
    QwenVision,
    QwenVisionConfig,
    qwen_vision_inputs,
    vision_constants,
)
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.config import Reader
from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderEvidence, EncoderShape


@dataclass(frozen=True)
class QwenVlConfig:
    """A checkpoint's configuration. `tokens_per_second`: see the runtime's facts."""

    vision: QwenVisionConfig
    text: DecoderConfig
    image_token_id: int
    video_token_id: int
    tokens_per_second: float | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @property
    def feature_width(self) -> int:
        return self.vision.feature_width


def text_section(config: Mapping[str, Any], model_type: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's keys: a section of their own, or at the top in the older published files.

    The kind of text model follows from the family, whatever the section calls itself.
    """
    given = config.get("text_config")
    own = config if given is None else Reader(config, "config").section_of("text_config", {})
    return {**defaults, **own, "model_type": model_type}


def read_qwen_vl(
    config: Mapping[str, Any],
    text_json: Mapping[str, Any],
    vision: QwenVisionConfig,
    *,
    out_key: str = "out_hidden_size",
) -> dict[str, Any]:
    """The fields of `QwenVlConfig`, but for `tokens_per_second`; `out_key` names the merger's width.

    Raises:
        CheckpointError: a value is not usable.
    """
    reader, text_reader = Reader(config, "config"), Reader(text_json, "text_config")
    tied = reader.flag("tie_word_embeddings", False)
    text = DecoderConfig.read(text_json, tied_head=tied, deepstack_levels=len(vision.deepstack))
    ids = {"image_token_id": 151655, "video_token_id": 151656}
    for key, default in ids.items():
        ids[key] = reader.integer(key, default)
        if ids[key] >= text.vocab_size:
            raise reader.refused(key, ids[key], f"below vocab_size ({text.vocab_size})")
    vision_reader = Reader(reader.section_of("vision_config", {}), "vision_config")
    if vision.out_size != text.hidden_size:
        wanted = f"the text model's hidden_size ({text.hidden_size})"
        raise vision_reader.refused(out_key, vision.out_size, wanted)
    if len(vision.deepstack) > text.num_layers:
        wanted = f"no more than the text model's layers ({text.num_layers})"
        raise vision_reader.refused("deepstack_visual_indexes", vision.deepstack, wanted)
    both = Reader({**text_json, **{k: v for k, v in config.items() if v is not None}}, "config")
    return {
        "vision": vision,
        "text": text,
        **ids,
        "bos_token_id": next(iter(text_reader.token_ids("bos_token_id", None)), None),
        "eos_token_ids": text_reader.token_ids("eos_token_id", None),
        "pad_token_id": next(iter(both.token_ids("pad_token_id", None)), None),
    }


# --- what a family module offers ----------------------------------------------------------------------------


def encoder_shape(config: QwenVlConfig) -> EncoderShape:
    """The features are the last layer's output; there is no CLS token."""
    return config.vision.shape


class Vision(nn.Module):
    """Patches `[f, n, u, w]` to candidates `[1, f * n, u * c]`, all frames of an item in one row.

    With DeepStack, a candidate is the last layer's cell and then, one behind the other, the cells of the
    layers that feed the decoder's first layers.
    """

    def __init__(self, config: QwenVlConfig, layers: tuple[int, ...], *, pooled: bool) -> None:
        super().__init__()
        assert not pooled, "there is no pooling head: encoder_shape says so"
        self.encoder = QwenVision(config.vision, layers)
        self.config = config.vision

    def forward(self, feeds: dict[str, Tensor]) -> EncoderEvidence:
        trace = self.encoder(feeds)
        f, n = feeds["patches"].shape[:2]
        width = self.config.cell_width
        cells = [
            x.reshape(1, f * n, width) for x in (trace.hidden, *trace.levels)
        ]  # f (n u) c -> 1 (f n) (u c)
        return EncoderEvidence(
            features=cells[0] if len(cells) == 1 else torch.cat(cells, dim=2),
            patches=trace.hidden,
            cls=None,
            query=trace.query,
            key=trace.key,
            num_heads=self.config.num_heads,
            # f (n u) -> 1 (f n) u: a cell is worth as much as its patches are in the mean
            pool=lambda score: score.reshape(1, f * n, self.config.unit).mean(dim=2),
            tile=torch.arange(f)[:, None].expand(f, n).reshape(1, f * n),
        )


class Connector(nn.Module):
    """Qwen2-VL's merger: a norm of each patch, then two linear layers per cell: `[k, u * c] -> [k, d]`."""

    def __init__(self, config: QwenVlConfig) -> None:
        super().__init__()
        vision = config.vision
        norm = RMSNorm if vision.gated else LayerNorm
        self.ln_q = norm(vision.hidden_size, NORM_EPS)
        self.mlp = nn.Sequential(
            Linear(vision.cell_width, vision.cell_width, bias=True),
            nn.GELU(),
            Linear(vision.cell_width, vision.out_size, bias=True),
        )
        self.unit = vision.unit

    def forward(self, x: Tensor) -> Tensor:
        k, width = x.shape
        patches = self.ln_q(x.reshape(k, self.unit, width // self.unit))  # k (u c) -> k u c
        y: Tensor = self.mlp(patches.reshape(k, width))
        return y


def vision_inputs(config: QwenVlConfig) -> tuple[TensorSpec, ...]:
    """Patches and geometry of one image or video."""
    return qwen_vision_inputs(config.vision)


def candidates(config: QwenVlConfig) -> str:
    """As many as the picture has cells, times the frames."""
    return "tokens"


def runtime_facts(config: QwenVlConfig) -> dict[str, Any]:
    """What the runtime's preprocessor has to know."""
    return {
        "patch_size": config.vision.patch_size,
        "temporal_patch_size": config.vision.temporal_patch_size,
        "merge_size": config.vision.merge_size,
        "window": config.vision.window,
        "position_side": config.vision.position_side,
        "tokens_per_second": config.tokens_per_second,
    }


# --- weights ------------------------------------------------------------------------------------------------

# Prefixes by which releases of transformers have called the same tensors; first match wins.
_PREFIXES: Final = (
    (r"^(?:model\.)?visual\.blocks\.", "vision.encoder.layers."),
    (r"^(?:model\.)?visual\.patch_embed\.proj\.", "vision.encoder.patch_embed."),
    (r"^(?:model\.)?visual\.deepstack_merger_list\.", "connector.deepstack."),
    (r"^(?:model\.)?visual\.merger\.", "connector."),
    (r"^(?:model\.)?visual\.", "vision.encoder."),
    (r"^(?:model\.)?language_model\.(?:model\.)?", "language_model."),
    (r"^model\.", "language_model."),
)


def rename_weight(name: str) -> str:
    """Returns the name inside the graphs of a checkpoint's tensor, current or legacy."""
    for pattern, replacement in _PREFIXES:
        name, hits = re.subn(pattern, replacement, name, count=1)
        if hits:
            break
    return name.replace(".mlp.linear_fc", ".mlp.fc")


def is_unused(config: QwenVlConfig, name: str) -> bool:
    """Whether a renamed tensor belongs to the model but not to the graphs: computed buffers."""
    return bool(re.search(r"rotary_(?:emb|pos_emb)\.inv_freq$", name))


def constants(config: QwenVlConfig) -> dict[str, Tensor]:
    """Parameters that are computed, not stored."""
    return vision_constants(config.vision)
