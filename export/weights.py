"""All graphs' weights in one file, written one tensor at a time.

Peak memory is one tensor, whatever the model's size: the graphs are traced without weights and only refer to
offsets in this file. Both layouts refer to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from foveate.export.blocks.linear import Piece
from foveate.export.checkpoint import Checkpoint, check_readable
from foveate.runtime.errors import CheckpointError

WEIGHTS_FILE: Final = "weights.bin"
# ONNX Runtime maps external data whose offset is a multiple of the page size instead of copying it.
_PAGE: Final = 4096
_BITS: Final[Mapping[str, int]] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8e4m3fn": 8,
    "int8": 8,
    "uint8": 8,
    "int4": 4,
}


class WeightNames(Protocol):
    """What the writer asks of a family module about names."""

    def rename_weight(self, name: str) -> str: ...

    def is_unused(self, config: Any, name: str) -> bool: ...


@dataclass(frozen=True)
class Parameter:
    """A graph's parameter: its shape there, and whether it is the transpose of the checkpoint's tensor.

    With `piece` it is a part of that tensor; `source` is the tensor's name where it is not the parameter's.
    `linear` says that it is nothing but the right-hand side of products: kernels may store it their way.
    """

    shape: tuple[int, ...]
    transposed: bool
    piece: Piece | None = None
    source: str | None = None
    linear: bool = False
    dtype: str = "float32"

    @property
    def source_shape(self) -> tuple[int, ...]:
        own = self.shape[::-1] if self.transposed else self.shape
        return own if self.piece is None else self.piece.whole(own)

    @property
    def nbytes(self) -> int:
        return -(-_BITS[self.dtype] * int(torch.Size(self.shape).numel()) // 8)


@dataclass(frozen=True)
class Placement:
    """Where a parameter lies in the weights file, in bytes."""

    offset: int
    nbytes: int
    dtype: str = "float32"


def match_weights(
    parameters: Mapping[str, Parameter],
    checkpoint: Checkpoint,
    names: WeightNames,
    config: Any,
    tied: Mapping[str, str],
    constants: Mapping[str, Tensor],
) -> dict[str, Callable[[], Tensor]]:
    """Returns a loader for each parameter, after checking that checkpoint and graphs fit exactly.

    Raises:
        CheckpointError: names every missing, extra or misshapen tensor (the first few of many).
    """
    sources = {names.rename_weight(name): name for name in checkpoint.tensors}
    loaders: dict[str, Callable[[], Tensor]] = {}
    missing, misshapen = [], []
    for parameter_name, parameter in parameters.items():
        if parameter_name in constants:
            loaders[parameter_name] = lambda value=constants[parameter_name]: value  # type: ignore[misc]
            continue
        # A stored tensor wins over a tie: transformers 5 ties only what is absent or equal.
        wanted = parameter.source or parameter_name
        source = sources.get(wanted) or sources.get(tied.get(wanted, wanted))
        if source is None:
            missing.append(f"{parameter_name} {list(parameter.source_shape)}")
            continue
        entry = checkpoint.tensors[source]
        check_readable(source, entry)
        if entry.shape != parameter.source_shape:
            misshapen.append(f"{source} is {list(entry.shape)}, wanted {list(parameter.source_shape)}")
        loaders[parameter_name] = _loader(checkpoint, source, parameter)
    known = {parameter.source or name for name, parameter in parameters.items()} | set(tied)
    extra = [
        s for renamed, s in sources.items() if renamed not in known and not names.is_unused(config, renamed)
    ]
    _complain(checkpoint, missing, misshapen, extra)
    return loaders


def _loader(checkpoint: Checkpoint, source: str, parameter: Parameter) -> Callable[[], Tensor]:
    def load() -> Tensor:
        tensor = checkpoint.load(source)
        if parameter.piece is not None:
            tensor = parameter.piece.cut(tensor)
        return tensor.t() if parameter.transposed else tensor

    return load


def _complain(checkpoint: Checkpoint, missing: list[str], misshapen: list[str], extra: list[str]) -> None:
    for kind, names in (("missing", missing), ("misshapen", misshapen), ("not part of this model", extra)):
        if names:
            shown = "; ".join(names[:5]) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")
            raise CheckpointError(
                f"{len(names)} tensor{'s' if len(names) > 1 else ''} of {checkpoint.path} {kind}",
                found=shown,
                wanted="exactly the tensors that its config.json describes",
                mend="fetch the checkpoint again, or check that config.json belongs to these weights",
            )


def plan_placements(parameters: Mapping[str, Parameter]) -> tuple[dict[str, Placement], int]:
    """Returns each parameter's place in the file, pages apart, and the file's size in bytes."""
    placements, offset = {}, 0
    for name, parameter in parameters.items():
        placements[name] = Placement(offset, parameter.nbytes, parameter.dtype)
        offset += -(-parameter.nbytes // _PAGE) * _PAGE
    return placements, offset


def write_weights(
    path: Path,
    placements: Mapping[str, Placement],
    loaders: Mapping[str, Callable[[], Tensor]],
    progress: Callable[[int], None],
) -> None:
    """Writes the file; `progress` is told the bytes written so far."""
    with path.open("wb") as file:
        for name, place in placements.items():
            file.write(b"\0" * (place.offset - file.tell()))
            tensor = loaders[name]().contiguous()
            assert tensor.nbytes == place.nbytes, f"{name}: {tensor.nbytes} bytes, planned {place.nbytes}"
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            progress(file.tell())


def merge_parameters(stages: Iterable[Mapping[str, Parameter]]) -> dict[str, Parameter]:
    """Returns the parameters of all graphs under one roof; graphs that share one must agree on it."""
    merged: dict[str, Parameter] = {}
    for parameters in stages:
        for name, parameter in parameters.items():
            if merged.setdefault(name, parameter) != parameter:
                raise AssertionError(f"two graphs disagree about {name}: {merged[name]} and {parameter}")
    return merged
