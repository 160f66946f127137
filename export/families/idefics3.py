"""Idefics3 (arXiv 2408.12637): SigLIP over square tiles, pixel shuffle, a linear layer, Llama text model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from foveate.export.blocks.idefics_vision import (
    POSITION_INDEX,
    IdeficsConnector,
    IdeficsVision,
    position_buckets,
    read_vision,
)
from foveate.export.blocks.siglip import SiglipConfig
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.config import Reader
from foveate.export.families import Facts
from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderShape

FACTS: Final = Facts(
    title="Idefics3 and SmolVLM",
    checkpoints=(
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "HuggingFaceTB/SmolVLM-500M-Instruct",
        "HuggingFaceTB/SmolVLM-Instruct",
    ),
    text_models=("llama",),
    scores=("received", "prompt"),
    default_plan=("saliency-knee", "text-relevance@2"),
    visual_tokens="169 per tile of 364 px, 64 of 512 px: a grid of tiles, and the whole picture",
    differs=("image processors whose max_image_size is not the encoder's image_size are refused",),
)
_DEFAULT_TEXT: Final[Mapping[str, Any]] = {"model_type": "llama", "rms_norm_eps": 1e-5}
_DEFAULT_EOS: Final[Mapping[Any, int]] = {None: 2, "llama": 2, "mistral": 2}


@dataclass(frozen=True)
class Config:
    """An Idefics3 or SmolVLM checkpoint's configuration.

    `shuffle`: patches along one side of a visual token.
    """

    vision: SiglipConfig
    text: DecoderConfig
    shuffle: int
    image_token_id: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        reader = Reader(config, "config")
        text_json = reader.section_of("text_config", _DEFAULT_TEXT)
        text_reader = Reader(text_json, "text_config")
        vision = read_vision(reader.section_of("vision_config", {}))
        text = DecoderConfig.read(text_json, tied_head=reader.flag("tie_word_embeddings", False))
        image_token_id = reader.integer("image_token_id", 128257)
        if image_token_id >= text.vocab_size:
            raise reader.refused("image_token_id", image_token_id, f"below vocab_size ({text.vocab_size})")
        shuffle = reader.integer("scale_factor", 2)
        if vision.grid % shuffle:
            wanted = f"a number that divides the {vision.grid} patches of a side"
            raise reader.refused("scale_factor", shuffle, wanted)
        return Config(
            vision=vision,
            text=text,
            shuffle=shuffle,
            image_token_id=image_token_id,
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
        return self.vision.hidden_size * self.shuffle**2


def encoder_shape(config: Config) -> EncoderShape:
    """Every layer sees the whole tile; there is no CLS."""
    layers = config.vision.num_layers
    return EncoderShape(layers, layers, tuple(range(layers)), has_cls=False)


class Vision(IdeficsVision):
    """Tiles `[t, 3, s, s]` of one item to candidates `[1, t * m, k^2 * c]` and what methods look at."""

    def __init__(self, config: Config, layers: tuple[int, ...], *, pooled: bool) -> None:
        assert not pooled, "no pooling head: encoder_shape says so"
        super().__init__(config.vision, config.shuffle, layers)


class Connector(IdeficsConnector):
    """One linear layer without bias: `[k, c] -> [k, d]`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.feature_width, config.text.hidden_size)


def vision_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """The square tiles of one image, the whole picture last, or the frames of one video.

    Tiles are always full: the processor scales pictures to whole tiles, so nothing has to be masked.
    """
    size = config.vision.image_size
    return (TensorSpec("pixel_values", "float32", ("tiles", 3, size, size)),)


def candidates(config: Config) -> str:
    """As many as the item has tiles, times the tokens of a tile."""
    return "tokens"


def runtime_facts(config: Config) -> dict[str, Any]:
    """What the runtime's preprocessor has to know."""
    return {"tile_size": config.vision.image_size, "token_grid": config.vision.grid // config.shuffle}


# --- weights ------------------------------------------------------------------------------------------------

_PREFIXES: Final = (
    (r"^model\.text_model\.", "language_model."),
    (r"^model\.vision_model\.", "vision.tower."),
    (r"^model\.connector\.modality_projection\.", "connector."),
)


def rename_weight(name: str) -> str:
    """Returns the name inside the graphs of a checkpoint's tensor."""
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
    """Parameters that are computed, not stored."""
    return {POSITION_INDEX: position_buckets(config.vision.grid)}
