"""What the runtime's tests are made of: manifests without a model, and bundles of a tiny one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.runtime.arrays import ints
from foveate.runtime.bundle import Bundle, BundleWriter
from foveate.runtime.chunk import PreparedPrompt
from foveate.runtime.families import VisualItem, grid_boxes
from foveate.runtime.manifest import Manifest

STAGES = {"vision": ["keep_ratio"], "embed": [], "decoder": ["keep_ratio_l1", "seed_l1"]}


def _budget(name: str) -> dict[str, Any]:
    return {"name": name, "dtype": "int64" if name.startswith("seed") else "float32", "shape": ["b"]}


def manifest(**changes: Any) -> Manifest:
    """A valid manifest of a model with three layers, cut after the encoder and after layer 1."""
    content: dict[str, Any] = {
        "foveate": "0.1.0",
        "family": "llava",
        "source": {"name": "tiny", "path": "tiny", "config_sha256": "0" * 64, "weights_sha256": "1" * 64},
        "model": {
            "hidden_size": 8,
            "num_layers": 3,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 4,
            "vocab_size": 11,
            "max_positions": 64,
            "vision_width": 6,
            "image_token_id": 9,
            "bos_token_id": 1,
            "eos_token_ids": [2],
            "pad_token_id": None,
            "vision": {"image_size": 28, "patch_size": 14},
            "visual_tokens": 6,
        },
        "pruning": [
            {"site": "encoder", "method": "cls-knee", "params": {"min_keep": 2}},
            {"site": "decoder", "layer": 1, "method": "random", "params": {"seed": 3}},
        ],
        "positions": "compact",
        "target": "onnxruntime",
        "layouts": {"fused": ["vision", "embed", "decoder"]},
        "stages": {
            name: {"file": f"onnx/{name}.onnx", "inputs": [_budget(n) for n in inputs], "outputs": []}
            for name, inputs in STAGES.items()
        },
        "cache": {"dtype": "float32", "num_kv_heads": 1, "head_dim": 4, "groups": [[0], [1, 2]]},
    }
    return Manifest.model_validate(content | changes)


def item(
    *runs: int,
    positions: Any = None,
    spans: Any = None,
    feeds: Any = None,
    kind: str = "image",
    text: str = "",
) -> VisualItem:
    """An image whose visual tokens come in these runs; without `positions` they count up in each run."""
    counted = np.concatenate([np.arange(run) for run in runs])[:, None]
    n = sum(runs)
    return VisualItem(
        kind=kind,
        feeds=feeds or {},
        text=text,
        runs=ints(runs),
        positions=counted if positions is None else ints(positions),
        spans=ints(runs if spans is None else spans),
        boxes=grid_boxes(1, n),
        frame=np.zeros(n, np.int64),
    )


def longer(prepared: PreparedPrompt, tokens: tuple[int, ...]) -> PreparedPrompt:
    """A prompt with generated tokens behind it."""

    def add(values: np.ndarray, more: Any) -> np.ndarray:
        row = np.broadcast_to(np.asarray(more, np.int64), (1, len(tokens)))
        row = row if values.ndim == 2 else np.repeat(row[:, :, None], values.shape[2], axis=2)
        return np.concatenate([values, row], axis=1)

    start = int(prepared.next_position[0])
    return replace(
        prepared,
        input_ids=add(prepared.input_ids, tokens),
        slots=add(prepared.slots, -1),
        roles=add(prepared.roles, 0),
        origin=add(prepared.origin, -1),
        block=add(prepared.block, -1),
        positions=add(prepared.positions, np.arange(start, start + len(tokens))),
        length=prepared.length + len(tokens),
        next_position=prepared.next_position + len(tokens),
    )


def write_files(folder: Path) -> None:
    """Files with the names of the manifest's stages, and a processor."""
    (folder / "onnx").mkdir()
    (folder / "processor").mkdir()
    for name in ("vision", "embed", "decoder"):
        (folder / "onnx" / f"{name}.onnx").write_bytes(name.encode() * 100)
    (folder / "onnx" / "weights.bin").write_bytes(bytes(range(256)) * 64)
    (folder / "processor" / "tokenizer.json").write_text("{}")


def bundle(path: Path, **options: Any) -> Bundle:
    """A bundle that opens, but whose graphs are not graphs."""
    with BundleWriter(path, **options) as writer:
        write_files(writer.path)
        return writer.finish(manifest())
