"""LLaVA-NeXT (LLaVA-1.6): LLaVA-1.5 that looks at the whole picture and at crops of it.

candidates   patches of the whole picture (tile 0), then those of the crops row by row, as if the crops were
             one picture, without its padding; behind each row a line end, which is a learnt vector
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.clip import ClipVision
from foveate.export.blocks.line_ends import LineEnds
from foveate.export.blocks.projector import Projector, read_canvases
from foveate.export.config import Reader
from foveate.export.families import Facts, llava
from foveate.export.families.llava import constants, encoder_shape, is_unused
from foveate.export.stage import TensorSpec
from foveate.pruning.evidence import EncoderEvidence

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
    title="LLaVA-NeXT (1.6)",
    checkpoints=(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-hf/llama3-llava-next-8b-hf",
    ),
    text_models=("llama", "mistral", "qwen2"),
    scores=("cls_full", "cls_mean", "cosine", "received", "prompt"),
    default_plan=("cls-knee", "text-relevance@2"),
    visual_tokens="576 of the whole picture and up to 2340 of its crops, with a line end behind each row",
    differs=(
        "vision towers other than CLIP are refused",
        'vision_feature_select_strategy "full" is refused; with CLIP it fails in transformers too',
        "bundles stop at the text model's sliding window, where it has one",
    ),
)
_DEFAULT_CANVASES: Final = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@dataclass(frozen=True)
class Config(llava.Config):
    """A LLaVA-NeXT checkpoint's configuration. `canvases`: sizes that the crops may make up together."""

    canvases: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def read(config: Mapping[str, Any]) -> Config:
        """Reads `config.json`; raises `CheckpointError` naming the key that does not fit."""
        reader, base = Reader(config, "config"), llava.Config.read(config)
        if base.keep_cls:
            raise reader.refused("vision_feature_select_strategy", "full", '"default": crops form a grid')
        canvases = read_canvases(reader, _DEFAULT_CANVASES, base.vision.image_size)
        return Config(**vars(base), canvases=canvases)

    @property
    def feature_width(self) -> int:
        """The encoder's features, and a last column that marks line ends."""
        return super().feature_width + 1


class Vision(nn.Module):
    """Tiles `[t, 3, size, size]` of one picture to features `[1, n, c + 1]` and what methods look at."""

    def __init__(self, config: Config, layers: tuple[int, ...], *, pooled: bool) -> None:
        super().__init__()
        assert not pooled, "CLIP has no pooling head: encoder_shape says so"
        self.config = config
        self.tower = ClipVision(config.vision, config.feature_layers, layers)

    def forward(self, feeds: dict[str, Tensor]) -> EncoderEvidence:
        place, line = feeds["place"], feeds["line"]
        trace = self.tower(feeds["pixel_values"])
        hidden = torch.cat([trace.hidden[i] for i in self.config.feature_layers], dim=2)[:, 1:]  # t p c
        last = trace.hidden[self.config.feature_layers[-1]]
        t, p, c = hidden.shape
        ends = LineEnds(place >= t * p, place - t * p, line)
        patch = torch.where(ends.is_end, 0, place)  # n
        rows = hidden.reshape(t * p, c).index_select(0, patch)  # t p c -> (t p) c
        features = torch.cat([rows, ends.is_end.to(torch.float32)[:, None]], dim=1)  # n c+1
        return EncoderEvidence(
            features=features[None],
            patches=last[:, 1:],
            cls=last[:, 0],
            query=trace.query,
            key=trace.key,
            num_heads=self.config.vision.num_heads,
            pool=lambda score: ends.best(score.reshape(t * p).index_select(0, patch))[None],  # t p -> (t p)
            tile=ends.last(patch // p)[None],
            ends=lambda score: ends.best(score[0])[None],
        )


class Connector(Projector):
    """Features `[k, c + 1]` to `[k, d]`: projected, or the line end's vector where marked."""

    def __init__(self, config: Config) -> None:
        width, d = config.feature_width - 1, config.text.hidden_size
        super().__init__(width, d, config.projector_activation, bias=config.projector_bias)
        self.image_newline = nn.Parameter(torch.empty(d), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, -1:] > 0, self.image_newline, super().forward(x[:, :-1]))


def vision_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """One picture: its tiles, the patch or line end that each token is, and the tokens of each line.

    Patches are numbered through all tiles, and line ends on from there.
    """
    size = config.vision.image_size
    return (
        TensorSpec("pixel_values", "float32", ("tiles", config.vision.num_channels, size, size)),
        TensorSpec("place", "int64", ("tokens",)),
        TensorSpec("line", "int64", ("lines", "columns")),
    )


def candidates(config: Config) -> str:
    """Visual tokens of an image: they depend on its shape."""
    return "tokens"


def runtime_facts(config: Config) -> dict[str, Any]:
    """What the runtime's preprocessor has to know."""
    return {
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "canvases": [list(size) for size in config.canvases],
    }


def rename_weight(name: str) -> str:
    """Returns the name inside the graphs of a checkpoint's tensor, current or legacy."""
    if name.removeprefix("model.") == "image_newline":
        return "connector.image_newline"
    return llava.rename_weight(name)
