"""LLaVA-OneVision (arXiv 2408.03326): SigLIP on a whole picture and on crops of it, or on a video's frames.

    candidates   one image: patches of the whole picture (tile 0), then those of the crops row by row, as if
                 they were one picture, without its padding, resampled where there are too many; behind each
                 row a line end, which is a learnt vector
                 several images: patches of the whole picture, then a line end
                 a video: each frame's patches, resampled to half the side; behind all of them a line end

Resampling is linear and comes behind the projector, so a candidate is a weighted sum of up to four projected
patches. Which ones, and how heavy, are inputs of the graph.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.line_ends import LineEnds
from foveate.export.blocks.projector import Projector, read_canvases, read_feature_layers
from foveate.export.blocks.siglip import SiglipConfig, SiglipVision, rename_head
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.config import Reader
from foveate.export.families import Facts, llava
from foveate.export.families.llava import constants, is_unused
from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderEvidence, EncoderShape
from foveate.runtime.errors import CheckpointError

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
    title="LLaVA-OneVision",
    checkpoints=(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ),
    text_models=("qwen2",),
    scores=("received", "pooled", "prompt"),
    default_plan=("saliency-knee", "text-relevance@2"),
    visual_tokens="an image: 729 of the whole picture and up to 8000 of its crops; several images: 730 each; "
    "a video: 196 a frame",
    video="frames as they are given or sampled, each resized to a square",
    differs=(
        "all patches are projected before the encoder's cut, since resampling mixes them behind the "
        "projector: only the decoder is spared",
        "vision towers other than SigLIP are refused",
        'vision_feature_select_strategy "default" is refused: it would drop the first patch',
        "frames of videos are resized with Pillow, not with torchvision",
        "several videos of unequal length are read; transformers refuses them, so these answers have no "
        "reference",
    ),
)
_IMAGE_TOKEN, _VIDEO_TOKEN = 151646, 151647
_SIDES: Final = range(384, 2305, 384)
_DEFAULT_CANVASES: Final = [[height, width] for height in _SIDES for width in _SIDES]
# transformers' defaults for a LLaVA-OneVision without a vision_config: SigLIP so400m at 384 px, no head.
_DEFAULT_VISION: Final[Mapping[str, Any]] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}


@dataclass(frozen=True)
class Config:
    """A LLaVA-OneVision checkpoint's configuration.

    `feature_layers` count like transformers' `hidden_states` (0 = input of the first layer), made positive.
    `canvases`: sizes that the crops may make up together; `limit`: more patches than so many tiles have are
    resampled to that many.
    """

    vision: SiglipConfig
    text: DecoderConfig
    feature_layers: tuple[int, ...]
    canvases: tuple[tuple[int, int], ...]
    limit: int
    image_token_id: int
    video_token_id: int
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
        kind = Reader(vision_json, "vision_config").text("model_type", "siglip_vision_model")
        if kind != "siglip_vision_model":
            wanted = "siglip_vision_model"
            raise CheckpointError("unsupported vision tower", found=repr(kind), wanted=wanted)
        text_json = {"model_type": "qwen2", **reader.section_of("text_config", {})}
        strategy = reader.text("vision_feature_select_strategy", "full")
        if strategy != "full":
            raise reader.refused("vision_feature_select_strategy", strategy, '"full": SigLIP has no CLS')
        vision = SiglipConfig.read(vision_json)
        text = DecoderConfig.read(text_json, tied_head=reader.flag("tie_word_embeddings", False))
        words = Reader(text_json, "text_config")
        return Config(
            vision=vision,
            text=text,
            feature_layers=read_feature_layers(reader, vision.num_layers, -1),
            canvases=read_canvases(reader, _DEFAULT_CANVASES, vision.image_size),
            limit=_limit(reader),
            image_token_id=_token(reader, "image_token", _IMAGE_TOKEN, text.vocab_size),
            video_token_id=_token(reader, "video_token", _VIDEO_TOKEN, text.vocab_size),
            projector_activation=reader.text("projector_hidden_act", "gelu"),
            projector_bias=reader.flag("multimodal_projector_bias", True),
            bos_token_id=_first(words.token_ids("bos_token_id", None)),
            eos_token_ids=words.token_ids("eos_token_id", None),
            pad_token_id=_first(Reader({**text_json, **config}, "config").token_ids("pad_token_id", None)),
        )

    @property
    def feature_width(self) -> int:
        """The decoder's: candidates are projected before they are chosen."""
        return self.text.hidden_size


def _limit(reader: Reader) -> int:
    given = reader.text("vision_aspect_ratio", "anyres_max_9")
    match = re.fullmatch(r"anyres_max_([1-9]\d*)", given)
    if match is None:
        raise reader.refused("vision_aspect_ratio", given, '"anyres_max_" and a number')
    return int(match.group(1))


def _token(reader: Reader, name: str, default: int, size: int) -> int:
    """The id that config.json calls `<name>_index` or `<name>_id`."""
    number = reader.integer(f"{name}_index", reader.section.get(f"{name}_id") or default)
    if number >= size:
        raise reader.refused(f"{name}_index", number, f"below vocab_size ({size})")
    return number


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def encoder_shape(config: Config) -> EncoderShape:
    """SigLIP: every layer sees the whole tile, and there is no CLS token."""
    layers, head = config.vision.num_layers, config.vision.use_head
    every = tuple(range(layers))
    return EncoderShape(layers, config.feature_layers[-1], every, has_cls=False, has_pool=head)


class Vision(nn.Module):
    """Tiles or frames `[t, 3, size, size]` of one item to features `[1, n, d]` and what methods look at."""

    def __init__(self, config: Config, layers: tuple[int, ...], *, pooled: bool) -> None:
        super().__init__()
        self.feature_layers, self.num_heads = config.feature_layers, config.vision.num_heads
        self.tower = SiglipVision(config.vision, config.feature_layers, layers, pooled=pooled)
        width, d = config.vision.hidden_size * len(config.feature_layers), config.text.hidden_size
        self.projector = Projector(width, d, config.projector_activation, bias=config.projector_bias)
        self.image_newline = nn.Parameter(torch.empty(d), requires_grad=False)

    def forward(self, feeds: dict[str, Tensor]) -> EncoderEvidence:
        source, weight, line = feeds["source"], feeds["weight"], feeds["line"]
        trace = self.tower(feeds["pixel_values"])
        hidden = torch.cat([trace.hidden[i] for i in self.feature_layers], dim=2)  # t p c
        t, p, c = hidden.shape
        rows = self.projector(hidden.reshape(t * p, c))  # (t p) d
        rows = torch.cat([rows, self.image_newline[None]])
        first = source[:, 0]
        ends = LineEnds(first >= t * p, first - t * p, line)
        patch = torch.where(ends.is_end[:, None], t * p, source)  # n 4

        def pool(score: Tensor) -> Tensor:
            """The weighted sum of a token's patches; a line end's score is the best of its line."""
            flat = torch.cat([score.reshape(t * p), torch.zeros(1)])  # t p -> (t p)
            return ends.best((flat[patch] * weight).sum(dim=1))[None]  # 1 n

        return EncoderEvidence(
            features=_weighted_sum(rows, patch, weight)[None],
            patches=trace.hidden[self.feature_layers[-1]],
            cls=None,
            query=trace.query,
            key=trace.key,
            num_heads=self.num_heads,
            pool=pool,
            tile=ends.last(first // p)[None],
            ends=lambda score: ends.best(score[0])[None],
            pooled=trace.pooled,
        )


def _weighted_sum(rows: Tensor, number: Tensor, weight: Tensor) -> Tensor:
    """`[n, d]`: for each of n the sum of four rows, one by one: all at once take four times the memory."""
    total = rows.index_select(0, number[:, 0]) * weight[:, :1]
    for i in range(1, 4):
        total = total + rows.index_select(0, number[:, i]) * weight[:, i : i + 1]
    return total


class Connector(nn.Module):
    """Nothing is left to do: `[k, d] -> [k, d]`."""

    def __init__(self, config: Config) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


def vision_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """One picture or video: its tiles or frames, four weighted patches for each token, tokens of each line.

    Patches are numbered through all tiles, and line ends on from there: a line end has its number at the
    first of its four places. The heaviest patch comes first.
    """
    size = config.vision.image_size
    return (
        TensorSpec("pixel_values", "float32", ("tiles", config.vision.num_channels, size, size)),
        TensorSpec("source", "int64", ("tokens", 4)),
        TensorSpec("weight", "float32", ("tokens", 4)),
        TensorSpec("line", "int64", ("lines", "columns")),
    )


def candidates(config: Config) -> str:
    """Visual tokens of an image or video: they depend on its shape."""
    return "tokens"


def runtime_facts(config: Config) -> dict[str, Any]:
    """What the runtime's preprocessor has to know."""
    return {
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "canvases": [list(size) for size in config.canvases],
        "limit": config.limit,
    }


def rename_weight(name: str) -> str:
    """Returns the name inside the graphs of a checkpoint's tensor, current or legacy."""
    if name.removeprefix("model.") == "image_newline":
        return "vision.image_newline"
    renamed = rename_head(llava.rename_weight(name))
    # LLaVA's projector is its connector; here it is part of the encoder.
    return re.sub(r"^connector\.", "vision.projector.", renamed)
