"""Gemma 3 (arXiv 2503.19786): SigLIP tower, average pooling, one matrix, a text model of windowed layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.norm import RMSNorm
from foveate.export.blocks.siglip import SiglipConfig, SiglipVision
from foveate.export.blocks.siglip import rename_head as rename_pooling_head
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.config import Reader
from foveate.export.families import Facts
from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderEvidence, EncoderShape
from foveate.runtime.errors import CheckpointError

FACTS: Final = Facts(
    title="Gemma 3",
    checkpoints=("google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it"),
    text_models=("gemma3_text",),
    scores=("received", "prompt", "pooled"),
    default_plan=("saliency-knee", "text-relevance@2"),
    visual_tokens="mm_tokens_per_image, 256 whatever the picture's size",
    differs=("pan and scan, which adds crops of long pictures, is not offered; it is off by default",),
)


@dataclass(frozen=True)
class Config:
    """A Gemma 3 checkpoint's configuration. `side`: visual tokens along a side of a picture."""

    vision: SiglipConfig
    text: DecoderConfig
    side: int
    image_token_id: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        reader = Reader(config, "config")
        vision = _read_vision(reader.section_of("vision_config", {}))
        text_json = {"model_type": "gemma3_text", **reader.section_of("text_config", {})}
        text = _read_text(text_json, tied=reader.flag("tie_word_embeddings", True))
        image_token_id = reader.integer("image_token_index", config.get("image_token_id") or 262144)
        if image_token_id >= text.vocab_size:
            raise reader.refused("image_token_index", image_token_id, f"below vocab_size ({text.vocab_size})")
        # The tokens of both levels; what the whole model says wins.
        tokens = Reader({**text_json, **config}, "config")
        return Config(
            vision=vision,
            text=text,
            side=_side(reader, vision),
            image_token_id=image_token_id,
            bos_token_id=next(iter(tokens.token_ids("bos_token_id", 2)), None),
            eos_token_ids=tokens.token_ids("eos_token_id", 1),
            pad_token_id=next(iter(tokens.token_ids("pad_token_id", 0)), None),
        )

    @property
    def feature_width(self) -> int:
        return self.vision.hidden_size

    @property
    def pooling(self) -> int:
        """Patches along a side of what becomes one visual token."""
        return self.vision.grid // self.side


def _read_vision(vision: Mapping[str, Any]) -> SiglipConfig:
    kind = Reader(vision, "vision_config").text("model_type", "siglip_vision_model")
    if kind != "siglip_vision_model":
        raise CheckpointError(
            "unsupported vision tower for family gemma3", found=repr(kind), wanted="siglip_vision_model"
        )
    return SiglipConfig.read(vision)


def _read_text(text: Mapping[str, Any], *, tied: bool) -> DecoderConfig:
    reader = Reader(text, "text_config")
    if reader.text("model_type") != "gemma3_text":
        raise reader.refused("model_type", text["model_type"], "gemma3_text")
    # transformers caps the logits of the text-only model, but not of this one: who knows which is right?
    if text.get("final_logit_softcapping") is not None:
        raise reader.refused("final_logit_softcapping", text["final_logit_softcapping"], "none")
    return DecoderConfig.read(text, tied_head=tied)


def _side(reader: Reader, vision: SiglipConfig) -> int:
    tokens = reader.integer("mm_tokens_per_image", 256)
    side = math.isqrt(tokens)
    if side * side != tokens or vision.grid % side:
        wanted = f"the square of a number that divides {vision.grid}, the patches along a side"
        raise reader.refused("mm_tokens_per_image", tokens, wanted)
    return side


def encoder_shape(config: Config) -> EncoderShape:
    """SigLIP: every layer sees the whole picture; the features are the last one's output."""
    layers = config.vision.num_layers
    return EncoderShape(
        num_layers=layers,
        feature_layer=layers,
        global_layers=tuple(range(layers)),
        has_cls=False,
        has_pool=config.vision.use_head,
    )


class Vision(nn.Module):
    """Pixels `[b, 3, size, size]` to features `[b, n, c]`, each the mean of a square of patches."""

    def __init__(self, config: Config, layers: tuple[int, ...], *, pooled: bool) -> None:
        super().__init__()
        self.num_heads, self.side, self.pooling = config.vision.num_heads, config.side, config.pooling
        self.tower = SiglipVision(config.vision, (), layers, normed=True, pooled=pooled)

    def forward(self, feeds: dict[str, Tensor]) -> EncoderEvidence:
        trace = self.tower(feeds["pixel_values"])
        assert trace.normed is not None
        features = self._squares(trace.normed)
        b, n, _ = features.shape
        return EncoderEvidence(
            features=features,
            patches=trace.normed,
            cls=None,
            query=trace.query,
            key=trace.key,
            num_heads=self.num_heads,
            pool=lambda score: self._squares(score[:, :, None])[:, :, 0],
            tile=torch.zeros((b, n), dtype=torch.int64),
            pooled=trace.pooled,
        )

    def _squares(self, x: Tensor) -> Tensor:
        """The means over the squares of patches: `[b, p, w]` to `[b, n, w]`."""
        b, _, w = x.shape
        split = x.reshape(
            b, self.side, self.pooling, self.side, self.pooling, w
        )  # b (y i x j) w -> b y i x j w
        return split.mean(dim=(2, 4)).reshape(b, self.side**2, w)  # b y x w -> b (y x) w


class Connector(nn.Module):
    """A norm and a matrix, which is stored as it multiplies: `[k, c] -> [k, d]`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c, d = config.feature_width, config.text.hidden_size
        self.mm_soft_emb_norm = RMSNorm(c, config.vision.layer_norm_eps, offset=True)
        self.mm_input_projection_weight = nn.Parameter(torch.empty(c, d), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mm_soft_emb_norm(x) @ self.mm_input_projection_weight
        return y


def vision_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """Square pictures of one size, many in one call."""
    size = config.vision.image_size
    return (TensorSpec("pixel_values", "float32", ("batch", config.vision.num_channels, size, size)),)


def candidates(config: Config) -> int:
    """Visual tokens of an image."""
    return config.side**2


def runtime_facts(config: Config) -> dict[str, Any]:
    """What the runtime's preprocessor has to know."""
    return {"image_size": config.vision.image_size, "side": config.side}


# --- weights ------------------------------------------------------------------------------------------------

# Prefixes by which releases of transformers have called the same tensors; first match wins.
_PREFIXES: Final = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(?:model\.)?language_model\.(?:model\.)?", "language_model."),
    (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision.tower."),
    (r"^(?:model\.)?multi_modal_projector\.", "connector."),
)


def rename_weight(name: str) -> str:
    """Returns the name inside the graphs of a checkpoint's tensor, current or legacy."""
    for pattern, replacement in _PREFIXES:
        name, hits = re.subn(pattern, replacement, name, count=1)
        if hits:
            break
    return rename_pooling_head(name)


def is_unused(config: Config, name: str) -> bool:
    """Whether a renamed tensor belongs to the model but not to the graphs: the pooling head, buffers."""
    return name.startswith("vision.tower.") and config.vision.is_unread(name.removeprefix("vision.tower."))


def constants(config: Config) -> dict[str, Tensor]:
    """None besides those of the text model."""
    return {}
