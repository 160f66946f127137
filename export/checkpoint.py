"""A Hugging Face checkpoint folder, read lazily: shapes first, one tensor at a time afterwards."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foveate.export.config import read_json
from foveate.runtime.errors import CheckpointError

# The processor side of a checkpoint: what the runtime needs to turn text and images into numbers.
PROCESSOR_FILES: Final = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
_READABLE: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_HEADER_LIMIT: Final = 100 * 2**20


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: its file, its name there, its shape and its safetensors dtype."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """A folder with `config.json` and `*.safetensors`, single or sharded.

    Opening reads headers only, and checks each file's length against its header, so that a truncated
    download is found before an export starts.

    Raises:
        CheckpointError: something is missing, truncated, quantised, or not a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise CheckpointError(
                f"no checkpoint folder at {path}",
                found="a file" if path.exists() else "nothing",
                wanted="a folder with config.json and *.safetensors, or the word demo",
            )
        self.path = path
        self.config: dict[str, Any] = read_json(path / "config.json")
        _refuse_quantised(self.config)
        self.tensors: Mapping[str, TensorEntry] = _read_entries(path)

    def load(self, name: str) -> Tensor:
        """Returns a tensor as float32. The file is mapped only meanwhile, so memory stays at one tensor."""
        entry = self.tensors[name]
        try:
            with safe_open(entry.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(entry.name)
                return tensor.to(torch.float32, copy=True)
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"tensor {name} can't be read from {entry.file.name}", found=str(e)) from e

    def weights_sha256(self) -> str:
        """Returns a cheap fingerprint: names, shapes, dtypes, and each file's size and three samples."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.tensors.items()):
            digest.update(f"{name} {entry.shape} {entry.dtype}\n".encode())
        for file in sorted({entry.file for entry in self.tensors.values()}):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as stream:
                for start in (0, size // 2, max(size - 65536, 0)):
                    stream.seek(start)
                    digest.update(stream.read(65536))
        return digest.hexdigest()


def _refuse_quantised(config: Mapping[str, Any]) -> None:
    sections = (config, config.get("text_config"), config.get("vision_config"))
    for section in sections:
        quantisation = section.get("quantization_config") if isinstance(section, Mapping) else None
        if quantisation:
            method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else quantisation
            raise CheckpointError(
                "quantised checkpoints can't be exported",
                found=f"quantization_config with method {method!r}",
                wanted="weights in float32, float16 or bfloat16",
                mend="give the unquantised checkpoint that this one was made from",
            )


def _read_entries(path: Path) -> dict[str, TensorEntry]:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise _no_weights(path)
        return {name: entry for file in files for name, entry in _read_header(file).items()}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(s, str) for s in weight_map.values()):
        raise CheckpointError(f"{index.name} has no usable weight_map", mend="fetch the file again")
    headers: dict[str, dict[str, TensorEntry]] = {}
    for shard in sorted(set(weight_map.values())):
        file = path / str(shard)
        if not file.is_file():
            missing = sum(1 for s in weight_map.values() if s == shard)
            raise CheckpointError(
                f"shard {shard} is missing",
                found=f"{missing} tensors of {index.name} are in it",
                mend="fetch the missing shard",
            )
        headers[shard] = _read_header(file)
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise CheckpointError(f"tensor {name} is not in {shard}, where {index.name} says it is")
    return {name: headers[shard][name] for name, shard in weight_map.items()}


def _no_weights(path: Path) -> CheckpointError:
    others = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".gguf"})
    return CheckpointError(
        f"no *.safetensors in {path}",
        found=", ".join(others) or "no weights of any kind",
        wanted="model.safetensors, or shards with model.safetensors.index.json",
        mend="convert with transformers: model.save_pretrained(folder)"
        if others
        else "fetch the weight files",
    )


def _read_header(file: Path) -> dict[str, TensorEntry]:
    """Returns the tensors of one file, after checking that all their bytes are there."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise _truncated(file, f"{size} bytes, which is not a safetensors file")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as e:
            raise _truncated(file, "a header that is not JSON") from e
    try:
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        entries = {
            name: TensorEntry(file, name, tuple(int(axis) for axis in entry["shape"]), str(entry["dtype"]))
            for name, entry in header.items()
        }
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise _truncated(file, "a header that is not one of safetensors") from e
    if size < 8 + length + end:
        raise _truncated(file, f"{size} bytes; the header promises {8 + length + end}")
    return entries


def _truncated(file: Path, found: str) -> CheckpointError:
    return CheckpointError(f"{file.name} is damaged or truncated", found=found, mend="fetch the file again")


def check_readable(name: str, entry: TensorEntry) -> None:
    """Raises `CheckpointError` when a tensor's dtype is not a float that an export can use."""
    if entry.dtype not in _READABLE:
        raise CheckpointError(
            f"tensor {name} has a dtype that can't be exported",
            found=entry.dtype,
            wanted=", ".join(_READABLE),
            mend="give the unquantised checkpoint",
        )
