"""LLaVA-1.5 (arXiv 2310.03744): CLIP tower, MLP projector, Llama-like text model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.clip import ClipConfig, ClipVision
from foveate.export.blocks.projector import Projector, read_feature_layers
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.config import Reader
from foveate.export.families import Facts
from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderEvidence, EncoderShape
from foveate.runtime.errors import CheckpointError

FACTS: Final = Facts(
    title="LLaVA-1.5",
    checkpoints=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf", "llava-hf/bakLlava-v1-hf"),
    text_models=("llama", "mistral", "qwen2"),
    scores=("cls_full", "cls_mean", "cosine", "received", "prompt"),
    default_plan=("cls-knee", "text-relevance@2"),
    visual_tokens="(image_size / patch_size)^2, 576 at 336 px",
    differs=(
        "vision towers other than CLIP are refused",
        "bundles stop at the text model's sliding window, where it has one",
    ),
)

# transformers' defaults for a LLaVA without a vision_config: CLIP ViT-L/14 at 336 px.
_DEFAULT_VISION: Final[Mapping[str, Any]] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_DEFAULT_EOS: Final[Mapping[Any, int]] = {None: 2, "llama": 2, "mistral": 2}
_STRATEGIES: Final = ("default", "full")


@dataclass(frozen=True)
class Config:
    """A LLaVA checkpoint's configuration.

    `feature_layers` count like transformers' `hidden_states` (0 = input of the first layer), made positive.
    `keep_cls` is select strategy "full": the CLS token joins the visual tokens, and is never dropped.
    """

    vision: ClipConfig
    text: DecoderConfig
    feature_layers: tuple[int, ...]
    keep_cls: bool
    image_token_id: int
    projector_activation: str
    projector_bias: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        reader = Reader(config, "config")
        vision_json = reader.section_of("vision_config", _DEFAULT_VISION)
        kind = Reader(vision_json, "vision_config").text("model_type", "clip_vision_model")
        if kind != "clip_vision_model":
            # Of all families that read their configuration with this.
            name = reader.text("model_type", "llava")
            raise CheckpointError(
                f"unsupported vision tower for family {name}", found=repr(kind), wanted="clip_vision_model"
            )
        text_json = reader.section_of("text_config", {"model_type": "llama"})
        text_reader = Reader(text_json, "text_config")
        vision = ClipConfig.read(vision_json)
        tied = reader.flag("tie_word_embeddings", False)
        strategy = reader.text("vision_feature_select_strategy", "default")
        if strategy not in _STRATEGIES:
            raise reader.refused(
                "vision_feature_select_strategy", strategy, f"one of {', '.join(_STRATEGIES)}"
            )
        text = DecoderConfig.read(text_json, tied_head=tied)
        image_token_id = reader.integer("image_token_index", config.get("image_token_id") or 32000)
        if image_token_id >= text.vocab_size:
            raise reader.refused("image_token_index", image_token_id, f"below vocab_size ({text.vocab_size})")
        return Config(
            vision=vision,
            text=text,
            feature_layers=read_feature_layers(reader, vision.num_layers, -2),
            keep_cls=strategy == "full",
            image_token_id=image_token_id,
            projector_activation=reader.text("projector_hidden_act", "gelu"),
            projector_bias=reader.flag("multimodal_projector_bias", True),
            bos_token_id=next(iter(text_reader.token_ids("bos_token_id", None)), None),
            eos_token_ids=text_reader.token_ids(
                "eos_token_id", _DEFAULT_EOS.get(text_json.get("model_type"))
            ),
            pad_token_id=next(
                iter(Reader({**text_json, **config}, "config").token_ids("pad_token_id", None)), None
            ),
        )

    @property
    def feature_width(self) -> int:
        return self.vision.hidden_size * len(self.feature_layers)

    @property
    def scored_layer(self) -> int:
        """The feature layer that encoder scores are taken at: of several, the one that is named last."""
        return self.feature_layers[-1]


def encoder_shape(config: Config) -> EncoderShape:
    """CLIP: every layer sees the whole picture, and CLS stands first."""
    layers, side = config.vision.num_layers, config.vision.grid
    return EncoderShape(
        layers,
        config.scored_layer,
        tuple(range(layers)),
        has_cls=True,
        has_taps=True,
        grid=(side, side),
    )


class Vision(nn.Module):
    """Pixels `[b, 3, height, width]` to features `[b, n, c]` and what methods look at."""

    def __init__(
        self, config: Config, layers: tuple[int, ...], *, pooled: bool, taps: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        assert not pooled, "CLIP has no pooling head: encoder_shape says so"
        self.config, self.taps = config, taps
        self.tower = ClipVision(config.vision, (*config.feature_layers, *taps), layers)

    def forward(self, feeds: dict[str, Tensor], extra: Tensor | None = None) -> EncoderEvidence:
        """`extra` `[m, w]`: tokens that run along and are seen by no patch."""
        trace = self.tower(feeds["pixel_values"], extra)
        hidden = torch.cat([trace.hidden[i] for i in self.config.feature_layers], dim=2)  # b n+1 c
        last = trace.hidden[self.config.scored_layer]
        b, n = last.shape[0], last.shape[1] - 1
        return EncoderEvidence(
            features=hidden[:, 1:],
            patches=last[:, 1:],
            cls=last[:, 0],
            query=trace.query,
            key=trace.key,
            num_heads=self.config.vision.num_heads,
            pool=lambda score: score,
            tile=torch.zeros((b, n), dtype=torch.int64),
            leading=hidden[:, :1] if self.config.keep_cls else None,
            hidden={i: trace.hidden[i] for i in self.taps},
            extra=trace.extra.get(self.config.scored_layer),
        )


class Connector(Projector):
    """Two linear layers with an activation between: `[k, c] -> [k, d]`."""

    def __init__(self, config: Config) -> None:
        width, d = config.feature_width, config.text.hidden_size
        super().__init__(width, d, config.projector_activation, bias=config.projector_bias)


def vision_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """Square pictures of one size, many in one call."""
    size = config.vision.image_size
    return (TensorSpec("pixel_values", "float32", ("batch", config.vision.num_channels, size, size)),)


def candidates(config: Config) -> int:
    """Visual tokens of an image; with select strategy "full" CLS is one of them."""
    return config.vision.num_patches + config.keep_cls


def runtime_facts(config: Config) -> dict[str, Any]:
    """What the runtime's preprocessor has to know."""
    return {
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "keep_cls": config.keep_cls,
    }


# --- weights ------------------------------------------------------------------------------------------------

# Prefixes by which releases of transformers and LLaVA have called the same tensors; first match wins.
_PREFIXES: Final = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(?:model\.)?language_model\.model\.", "language_model."),
    (r"^(?:model\.)?language_model\.", "language_model."),
    (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision.tower."),
    (r"^(?:model\.)?multi_modal_projector\.", "connector."),
)


def rename_weight(name: str) -> str:
    """Returns the name inside the graphs of a checkpoint's tensor, current or legacy."""
    for pattern, replacement in _PREFIXES:
        name, hits = re.subn(pattern, replacement, name, count=1)
        if hits:
            break
    return name


def is_unused(config: Config, name: str) -> bool:
    """Whether a renamed tensor belongs to the model but not to the graphs: buffers, unread layers."""
    return config.vision.is_unread(name.removeprefix("vision.tower.")) or bool(
        re.match(r"language_model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$", name)
    )


def constants(config: Config) -> dict[str, Tensor]:
    """None besides those of the text model."""
    return {}
