"""Random weights of a checkpoint, drawn and written shard by shard: the model is never in memory whole."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from foveate.runtime.errors import ExportError

if TYPE_CHECKING:
    import torch

SHARD_BYTES: Final = 500_000_000
# What rows of the head are multiplied with whose token has no text, or ends it: greedy decoding then takes
# none of them, so that every answer is as long as was asked for.
_QUIET: Final = 1e-3
# Weights that write into the residual stream: each adds its share, so that the sum stays of order one.
_WRITERS: Final = frozenset(("o_proj", "out_proj", "down_proj", "fc2"))
_PUBLISHED: Final[Mapping[str, str]] = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.": "",
}


@dataclass(frozen=True)
class Tensor:
    """One weight: its shape, and whether it is an embedding table of its own, or the head."""

    shape: tuple[int, ...]
    table: bool
    head: bool


def published(name: str) -> str:
    """A parameter's name as published checkpoints write it, which every version of transformers reads.

    >>> published("model.vision_tower.encoder.layers.0.mlp.fc1.weight")
    'vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight'
    """
    for prefix, wanted in _PUBLISHED.items():
        if name.startswith(prefix):
            return wanted + name.removeprefix(prefix)
    return name


def write_shards(
    tensors: Mapping[str, Tensor],
    folder: Path,
    used: torch.Tensor,
    layers: int,
    seed: int,
    workers: int = 1,
) -> None:
    """Writes float16 safetensors with their index; names of `tensors` as they are.

    Args:
        tensors: every weight by its name.
        folder: where the files go.
        used: bool `[vocabulary]`; rows of the head of other tokens are all but zero.
        layers: of the decoder; what writes into the residual stream is narrower in a deep one.
        seed: of all weights together.
        workers: shards that are drawn at once.

    Raises:
        ExportError: the disk has no room.
    """
    import torch
    from safetensors.torch import save_file

    sizes = {name: 2 * math.prod(tensor.shape) for name, tensor in tensors.items()}
    _require_room(sum(sizes.values()), folder)

    def write(shard: str, names: list[str]) -> None:
        drawn = {name: draw(name, tensors[name], layers, seed) for name in names}
        for name in names:
            if tensors[name].head:
                drawn[name][~used] *= _QUIET
        half = {name: values.to(torch.float16) for name, values in drawn.items()}
        save_file(half, folder / shard, metadata={"format": "pt"})

    shards = {f"model-{number:05d}.safetensors": names for number, names in enumerate(_shards(sizes), 1)}
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(write, shards, shards.values()))
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    names: list[str] = []
    for name in sizes:
        if names and sum(sizes[each] for each in (*names, name)) > SHARD_BYTES:
            yield names
            names = []
        names.append(name)
    yield names


def _require_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise ExportError(
            "not enough room on the disk",
            found=f"{free / 1e9:.1f} GB free",
            wanted=f"{needed / 1e9:.1f} GB",
            mend="name a folder on a roomier disk",
        )


def draw(name: str, tensor: Tensor, layers: int, seed: int) -> torch.Tensor:
    """One weight, float32: normal, of the width that its place in the network asks for.

    Activations then neither vanish nor explode, and attention is neither flat nor a single peak.
    """
    import torch

    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    values = torch.randn(tensor.shape, generator=generator)
    if values.dim() == 1:
        if name.endswith("bias"):
            return values * 0.02
        return values if "class_embedding" in name or "newline" in name else 1 + 0.1 * values
    if tensor.table or "position_embedding" in name:
        return values
    values *= math.prod(tensor.shape[1:]) ** -0.5
    if not _WRITERS.isdisjoint(name.split(".")):
        values *= (2 * layers) ** -0.5
    return values
