"""What the runtime's tests are made of: manifests without a model, and bundles of a tiny one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.runtime.bundle import Bundle, BundleWriter
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
            "image_size": [28, 28],
            "patch_grid": [2, 3],
            "visual_tokens_per_image": 6,
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
