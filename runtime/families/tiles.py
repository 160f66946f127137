"""Pictures cut into square tiles, with or without the whole picture as one tile more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from foveate.runtime.arrays import Floats, Ints
from foveate.runtime.errors import BundleError
from foveate.runtime.families import grid_boxes


def tile_boxes(rows: int, columns: int, grid: int) -> Floats:
    """Boxes `[n, 4]` of `rows` x `columns` tiles of `grid`^2 tokens; behind more than one, the whole."""
    inside = grid_boxes(grid, grid)
    tiles = [
        (inside + np.array([column, row, column, row])) / np.array([columns, rows, columns, rows])
        for row in range(rows)
        for column in range(columns)
    ]
    whole = [inside] if len(tiles) > 1 else []
    return np.concatenate([*tiles, *whole]).astype(np.float32)


def tile_runs(tiles: int, tokens: int) -> dict[str, Ints]:
    """`runs`, `positions` and `spans` of one run of `tokens` visual tokens for each tile."""
    return {
        "runs": np.full(tiles, tokens, np.int64),
        "positions": np.tile(np.arange(tokens, dtype=np.int64), tiles)[:, None],
        "spans": np.full(tiles, tokens, np.int64),
    }


def square_tiles(pixels: Any, size: int) -> Floats:
    """Tiles `[t, 3, size, size]` as an image processor gave them.

    Raises:
        BundleError: they have another size than the graphs were made for.
    """
    try:
        tiles = np.ascontiguousarray(pixels, np.float32)
    except ValueError:  # tiles of several sizes make no array
        tiles = np.zeros((0,), np.float32)
    if tiles.ndim != 4 or tiles.shape[1:] != (3, size, size):
        raise BundleError(
            "the image processor does not fit the model",
            found=f"tiles of {list(tiles.shape[2:])} pixels",
            wanted=f"[{size}, {size}]",
            mend="compare preprocessor_config.json with vision_config.image_size, and export again",
        )
    return tiles


def named_token(folder: Path, name: str, default: str) -> str:
    """A token that tokenizer_config.json has under a name of the model's own, such as `start_image_token`."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    extra = config.get("extra_special_tokens")
    for section in (
        config,
        extra if isinstance(extra, dict) else {},
        config.get("model_specific_special_tokens"),
    ):
        token = section.get(name) if isinstance(section, dict) else None
        if token is not None:
            return str(token["content"] if isinstance(token, dict) else token)
    return default
