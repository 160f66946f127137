"""InternVL in transformers' format: InternViT over tiles, pixel shuffle, MLP, Qwen or Llama text model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from foveate.export.blocks.activation import find_activation
from foveate.export.blocks.internvit import InternVit, InternVitConfig
from foveate.export.blocks.linear import Linear
from foveate.export.blocks.norm import LayerNorm
from foveate.export.blocks.pixel_shuffle import PixelShuffle
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.config import Reader
from foveate.export.families import Facts
from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderEvidence, EncoderShape

FACTS: Final = Facts(
    title="InternVL 3",
    checkpoints=("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-8B-hf", "OpenGVLab/InternVL3_5-1B-HF"),
    text_models=("qwen2", "qwen3", "llama"),
    scores=("cls_full", "cls_mean", "cosine", "received", "prompt"),
    default_plan=("cls-knee", "text-relevance@2"),
    visual_tokens="256 per tile of 448 px: up to 12 tiles and a thumbnail",
    video="frames: one tile each, introduced by their number",
    differs=(
        "checkpoints in OpenGVLab's own format (model_type internvl_chat) are refused",
        "tiles that are not square, and lists of feature layers, are refused",
        "video frames are scaled by Pillow with the image processor's settings, not by torchvision",
    ),
)
_DEFAULT_TEXT: Final[Mapping[str, Any]] = {"model_type": "qwen2"}
_DEFAULT_EOS: Final[Mapping[Any, int]] = {"llama": 2}


@dataclass(frozen=True)
class Config:
    """An InternVL checkpoint's configuration.

    Attributes:
        feature_layer: counted like transformers' `hidden_states`, made positive.
        final_norm: the encoder's final norm follows (only behind the last layer, only in some checkpoints).
        shuffle: patches along one side of a visual token.
    """

    vision: InternVitConfig
    text: DecoderConfig
    feature_layer: int
    final_norm: bool
    shuffle: int
    projector_activation: str
    image_token_id: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        reader = Reader(config, "config")
        text_json = reader.section_of("text_config", _DEFAULT_TEXT)
        text_reader = Reader({**_DEFAULT_TEXT, **text_json}, "text_config")
        vision = InternVitConfig.read(reader.section_of("vision_config", {}))
        text = DecoderConfig.read(text_reader.section, tied_head=reader.flag("tie_word_embeddings", True))
        strategy = reader.text("vision_feature_select_strategy", "default")
        if strategy != "default":
            raise reader.refused("vision_feature_select_strategy", strategy, "default: CLS is left out")
        image_token_id = reader.integer("image_token_id", 151667)
        if image_token_id >= text.vocab_size:
            raise reader.refused("image_token_id", image_token_id, f"below vocab_size ({text.vocab_size})")
        layer, last = _feature_layer(reader, vision.num_layers)
        activation = reader.text("projector_hidden_act", "gelu")
        find_activation(activation)
        return Config(
            vision=vision,
            text=text,
            feature_layer=layer,
            final_norm=vision.final_norm and last,
            shuffle=_shuffle(reader, vision.grid),
            projector_activation=activation,
            image_token_id=image_token_id,
            bos_token_id=next(iter(text_reader.token_ids("bos_token_id", None)), None),
            eos_token_ids=text_reader.token_ids(
                "eos_token_id", _DEFAULT_EOS.get(text_reader.section["model_type"])
            ),
            pad_token_id=next(
                iter(Reader({**text_json, **config}, "config").token_ids("pad_token_id", None)), None
            ),
        )

    @property
    def feature_width(self) -> int:
        return self.vision.hidden_size * self.shuffle**2

    @property
    def tokens_per_tile(self) -> int:
        return (self.vision.grid // self.shuffle) ** 2


def _feature_layer(reader: Reader, num_layers: int) -> tuple[int, bool]:
    """The feature layer, and whether it is written as -1: only that one is normalised."""
    layer = reader.section.get("vision_feature_layer", -1)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -num_layers - 1 <= layer <= num_layers:
        wanted = f"one layer number from {-num_layers - 1} to {num_layers}"
        raise reader.refused("vision_feature_layer", layer, wanted)
    return layer % (num_layers + 1), layer == -1


def _shuffle(reader: Reader, grid: int) -> int:
    ratio = reader.positive("downsample_ratio", 0.5)
    side = round(1 / ratio)
    if side < 1 or abs(side * ratio - 1) > 1e-6 or grid % side:
        raise reader.refused(
            "downsample_ratio", ratio, f"1 / k, where k divides the {grid} patches of a side"
        )
    return side


def encoder_shape(config: Config) -> EncoderShape:
    """Every layer sees the whole tile, and CLS stands first."""
    layers = config.vision.num_layers
    return EncoderShape(layers, config.feature_layer, tuple(range(layers)), has_cls=True)


class Vision(nn.Module):
    """Tiles `[t, 3, s, s]` of one item to candidates `[1, t * m, k^2 * c]` and what methods look at."""

    def __init__(self, config: Config, layers: tuple[int, ...], *, pooled: bool) -> None:
        super().__init__()
        assert not pooled, "InternViT has no pooling head: encoder_shape says so"
        self.num_heads = config.vision.num_heads
        self.tower = InternVit(config.vision, config.feature_layer, layers, norm=config.final_norm)
        self.shuffle = PixelShuffle(config.vision.grid, config.shuffle)

    def forward(self, feeds: dict[str, Tensor]) -> EncoderEvidence:
        trace = self.tower(feeds["pixel_values"])
        patches = trace.hidden[:, 1:]  # t p c
        return EncoderEvidence(
            features=self.shuffle(patches),
            patches=patches,
            cls=trace.hidden[:, 0],
            query=trace.query,
            key=trace.key,
            num_heads=self.num_heads,
            pool=self.shuffle.pool,
            tile=self.shuffle.tile(patches.shape[0]),
        )


class Connector(nn.Module):
    """A norm and two linear layers with an activation between: `[k, c] -> [k, d]`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.text.hidden_size
        self.layer_norm = LayerNorm(config.feature_width, 1e-5)
        self.linear_1 = Linear(config.feature_width, d, bias=True)
        self.linear_2 = Linear(d, d, bias=True)
        self.activation = find_activation(config.projector_activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_2(self.activation(self.linear_1(self.layer_norm(x))))
        return y


def vision_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """The square tiles of one image, thumbnail last, or the frames of one video."""
    size = config.vision.image_size
    return (TensorSpec("pixel_values", "float32", ("tiles", 3, size, size)),)


def candidates(config: Config) -> str:
    """As many as the item has tiles, times the tokens of a tile."""
    return "tokens"


def runtime_facts(config: Config) -> dict[str, Any]:
    """What the runtime's preprocessor has to know."""
    return {"tile_size": config.vision.image_size, "token_grid": config.vision.grid // config.shuffle}


# --- weights ------------------------------------------------------------------------------------------------

# Prefixes by which releases of transformers have called the same tensors; first match wins.
_PREFIXES: Final = (
    (r"^(?:model\.)?language_model\.lm_head\.", "lm_head."),
    (r"^(?:model\.)?language_model\.(?:model\.)?", "language_model."),
    (r"^(?:model\.)?vision_tower\.encoder\.layer\.", "vision.tower.encoder.layers."),
    (r"^(?:model\.)?vision_tower\.", "vision.tower."),
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
