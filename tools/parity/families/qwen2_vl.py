"""Qwen2-VL, and what the Qwen-VL families have in common: an encoder of cells, positions of three axes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.video_utils import VideoMetadata

from foveate.tools.parity.facts import EncoderFacts
from foveate.tools.parity.families import Encoded, ItemTrace
from foveate.tools.parity.families.base import TextOracle, tapped


class PlainVideos:
    """Does what transformers' video processor does, with Pillow: that one needs torchvision."""

    def __init__(self, checkpoint: Path) -> None:
        images: Any = AutoImageProcessor
        self.images: Any = images.from_pretrained(checkpoint, backend="pil")
        self.merge_size = int(self.images.merge_size)
        self.patch_size = int(self.images.patch_size)
        self.temporal_patch_size = int(self.images.temporal_patch_size)
        self.settings = _video_settings(checkpoint)
        size = self.settings.get("size") or {}
        self.fewest = int(self.settings.get("min_pixels") or size["shortest_edge"])
        self.most = int(self.settings.get("max_pixels") or size["longest_edge"])

    def __call__(
        self, videos: Sequence[np.ndarray], video_metadata: Sequence[Mapping[str, Any]], **_: Any
    ) -> dict[str, Any]:
        """Patches, grids and times of videos [f, height, width, 3]."""
        made = [self._video(frames) for frames in videos]
        return {
            "pixel_values_videos": torch.from_numpy(np.concatenate([rows for rows, _ in made])),
            "video_grid_thw": torch.tensor([grid for _, grid in made]),
            "video_metadata": [VideoMetadata(**one) for one in video_metadata],
        }

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width to which frames are scaled."""
        factor = self.patch_size * self.merge_size
        high, wide = smart_resize(height, width, factor, self.fewest, self.most)
        return high, wide

    def _video(self, frames: np.ndarray) -> tuple[np.ndarray, list[int]]:
        high, wide = self.frame_size(len(frames), frames.shape[1], frames.shape[2])
        mean, std = np.asarray(self.images.image_mean), np.asarray(self.images.image_std)
        scaled = []
        for frame in frames:
            picture = Image.fromarray(frame).resize((wide, high), Image.Resampling.BICUBIC)
            scaled.append(((np.asarray(picture) / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1))
        while len(scaled) % self.temporal_patch_size:
            scaled.append(scaled[-1])
        steps = len(scaled) // self.temporal_patch_size
        rows, columns = high // self.patch_size, wide // self.patch_size
        patches = []
        for step in range(steps):
            first = step * self.temporal_patch_size
            clip = np.stack(scaled[first : first + self.temporal_patch_size], axis=1)  # c z y x
            for y, x in _cell_order(rows, columns, self.merge_size):
                top, left = y * self.patch_size, x * self.patch_size
                patches.append(clip[:, :, top : top + self.patch_size, left : left + self.patch_size].ravel())
        return np.stack(patches), [steps, rows, columns]


def _cell_order(rows: int, columns: int, merge: int) -> Iterator[tuple[int, int]]:
    """Row and column of each patch in the order of transformers: cell by cell."""
    for top in range(0, rows, merge):
        for left in range(0, columns, merge):
            for y in range(top, top + merge):
                for x in range(left, left + merge):
                    yield y, x


def _video_settings(checkpoint: Path) -> dict[str, Any]:
    """Where transformers looks for the settings of videos, in its order."""
    whole = checkpoint / "processor_config.json"
    if whole.is_file():
        nested = json.loads(whole.read_text(encoding="utf-8")).get("video_processor")
        if nested:
            return dict(nested)
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (checkpoint / name).is_file():
            return dict(json.loads((checkpoint / name).read_text(encoding="utf-8")))
    return {}


class Oracle(TextOracle):
    """transformers' Qwen2-VL."""

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint folder. Raises what transformers raises."""
        super().__init__(checkpoint)
        self.visual: Any = self.model.model.visual
        self.vision: Any = self.config.vision_config
        self.unit = int(self.vision.spatial_merge_size) ** 2

    def video_processor(self, checkpoint: Path) -> Any:
        """Videos without torchvision."""
        return PlainVideos(checkpoint)

    def positions(self, encoded: Encoded) -> np.ndarray:
        """Time, row and column [s, 3]."""
        return self.rope_index(encoded)

    def pixels(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The processor's patches, item by item [t, n, u, w]."""
        return [
            {"patches": rows.reshape(grid[0], -1, self.unit, rows.shape[1]).numpy()}
            for _, rows, grid in self._items(inputs)
        ]

    @torch.no_grad()
    def items(self, inputs: Mapping[str, Any]) -> list[ItemTrace]:
        """Each image and video, by itself."""
        return [self._trace(kind, rows, grid) for kind, rows, grid in self._items(inputs)]

    def _items(self, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, list[int]]]:
        """Kind, patches and grid (time, rows, columns) of the items: images, then videos."""
        for kind, pixels, grids in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            sizes = inputs[grids].tolist() if grids in inputs else []
            parts = torch.split(inputs[pixels], [t * h * w for t, h, w in sizes]) if sizes else ()
            for rows, grid in zip(parts, sizes, strict=True):
                yield kind, rows, grid

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Encoder layers in which a patch sees its whole frame."""
        return tuple(range(int(self.vision.depth)))

    def natural(self, rows: Tensor, grid: Sequence[int]) -> Tensor:
        """Rows [t * p, w] as the encoder has them, in the order of the picture: [t, p, w]."""
        return rows.reshape(grid[0], grid[1] * grid[2], rows.shape[1])

    def _trace(self, kind: str, rows: Tensor, grid: list[int]) -> ItemTrace:
        get = self.model.get_image_features if kind == "image" else self.model.get_video_features
        blocks = list(self.visual.blocks)
        modules = {("out", i): block for i, block in enumerate(blocks)}
        modules |= {("qkv", i): block.attn.qkv for i, block in enumerate(blocks)}
        with tapped(modules) as taps, _angles(blocks[0].attn) as angles:
            out = get(rows, torch.tensor([grid]))
        projected = out.pooler_output[0]
        hidden = {i: self.natural(taps["out", i][0], grid) for i in range(len(blocks))}
        query, key = {}, {}
        for i in range(len(blocks)):
            rotated = self._rotated(taps["qkv", i][0], angles[0])
            query[i], key[i] = (self.natural(one, grid).numpy() for one in rotated)
        return ItemTrace(
            projected=projected,
            facts=EncoderFacts(
                patches=hidden[len(blocks) - 1].numpy(),
                cls=None,
                query=query,
                key=key,
                num_heads=int(self.vision.num_heads),
                num_layers=len(blocks),
                feature_layer=len(blocks),
                global_layers=self.full_layers,
                pool=self._pool,
                tile=[step for step in range(grid[0]) for _ in range(grid[1] * grid[2] // self.unit)],
                projected=projected.numpy(),
            ),
            deepstack=self.deepstack(out),
            layers=hidden,
        )

    def deepstack(self, out: Any) -> Tensor | None:
        """What is added after the decoder's first layers [levels, n, d]: nothing."""
        return None

    def _rotated(self, joined: Tensor, angles: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Query and key [t * p, c] with transformers' own rotation, from the joined projection."""
        count, heads = len(joined), int(self.vision.num_heads)
        query, key, _ = joined.reshape(count, 3, heads, -1).unbind(1)
        rotate = sys.modules[type(self.model).__module__].apply_rotary_pos_emb_vision
        return [one.reshape(count, -1) for one in rotate(query, key, *angles)]

    def _pool(self, scores: np.ndarray) -> list[float]:
        """A cell's score is the mean of its patches': [t, p] to n numbers."""
        pooled = []
        for frame in scores:
            for start in range(0, len(frame), self.unit):
                pooled.append(sum(float(one) for one in frame[start : start + self.unit]) / self.unit)
        return pooled


@contextmanager
def _angles(attention: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Cosines and sines that an attention layer was given."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = attention.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()
