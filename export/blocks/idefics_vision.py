"""The vision side of Idefics3 and SmolVLM: SigLIP over square tiles, pixel shuffle, one linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.export.blocks.linear import Linear
from foveate.export.blocks.pixel_shuffle import PixelShuffle
from foveate.export.blocks.siglip import PositionEmbedding, SiglipConfig, SiglipVision
from foveate.pruning.evidence import EncoderEvidence

# transformers' defaults, where they are not SigLIP's. There is never a pooling head.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "patch_size": 32,
    "vision_use_head": False,
}
POSITION_INDEX: Final = "vision.tower.embeddings.position_embedding.index"


def read_vision(vision: Mapping[str, Any]) -> SiglipConfig:
    """Sizes from `vision_config`; the defaults are transformers' `Idefics3VisionConfig`."""
    given = {key: value for key, value in vision.items() if value is not None and key != "vision_use_head"}
    return SiglipConfig.read({**_DEFAULTS, **given})


class BucketedPositions(PositionEmbedding):
    """A table `[p, c]` that is read in the order of `position_buckets`."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__(config)
        self.index = nn.Parameter(torch.empty(config.num_patches), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight.index_select(0, self.index.to(torch.int64))


def position_buckets(grid: int) -> Tensor:
    """float32 `[grid * grid]`: the row of the position table that each patch of a full tile reads.

    The encoder sorts the places i / grid into buckets bounded by 1 / grid, 2 / grid, ... in float32. For most
    sizes that is 0, 1, 2, ...; for some (19, 25, 29, ...) rounding puts a patch into its neighbour's bucket.
    The checkpoints were trained like that, so the same float32 steps are taken here.
    """
    bounds = torch.arange(1 / grid, 1.0, 1 / grid)
    step = 1.0 / torch.tensor(grid)
    places = torch.arange(grid, dtype=torch.float32) * step
    bucket = torch.bucketize(torch.clamp(places, max=1.0 - 1e-6), bounds, right=True)
    return (bucket[:, None] * grid + bucket[None, :]).reshape(-1).to(torch.float32)  # rows columns -> p


class IdeficsVision(nn.Module):
    """Tiles `[t, 3, s, s]` of one item to candidates `[1, t * m, k^2 * c]` and what methods look at."""

    def __init__(self, config: SiglipConfig, side: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.tower = SiglipVision(config, (), layers, normed=True)
        self.tower.embeddings.position_embedding = BucketedPositions(config)
        self.shuffle = PixelShuffle(config.grid, side)

    def forward(self, feeds: dict[str, Tensor]) -> EncoderEvidence:
        trace = self.tower(feeds["pixel_values"])
        patches = trace.normed
        assert patches is not None
        return EncoderEvidence(
            features=self.shuffle(patches),
            patches=patches,
            cls=None,
            query=trace.query,
            key=trace.key,
            num_heads=self.num_heads,
            pool=self.shuffle.pool,
            tile=self.shuffle.tile(patches.shape[0]),
        )


class IdeficsConnector(nn.Module):
    """One linear layer without bias: `[k, c] -> [k, d]`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y
