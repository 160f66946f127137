"""Weights of a trained pruning method: a small safetensors file beside the checkpoint it was trained for.

Tensors are called as in the graphs, without the `cuts.` before: `encoder.<parameter>`, `l2.<parameter>`. The
metadata says which method they belong to, with which options, and which model's weights they were trained on:
gates that read another model's hidden states would be noise, and nothing would say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.export.checkpoint import Checkpoint
from foveate.pruning.plan import CutSpec, PruningPlan
from foveate.pruning.registry import describe_method, find_method
from foveate.runtime.errors import CheckpointError, UsageError

FORMAT: Final = "foveate-adapter-1"
_READABLE: Final = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Adapter:
    """One method's weights.

    Attributes:
        path: the file.
        method: the method's name.
        params: per cut (`encoder`, `l2`, ...) the options that it was trained with.
        source_name: the model's name.
        source_weights: sha256 of the model's weights, as `Checkpoint.weights_sha256` counts it.
        trained: how: seed, steps, data, accuracy on held-out examples.
        tensors: by name, in the file's precision.
    """

    path: Path
    method: str
    params: Mapping[str, Mapping[str, Any]]
    source_name: str
    source_weights: str
    trained: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Adapter:
        """The adapter in a file.

        Raises:
            CheckpointError: there is no such file, or it is no adapter.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.get("format") != FORMAT:
                raise ValueError(f"format {about.get('format', 'none')}")
            return cls(
                path=path,
                method=about["method"],
                params=json.loads(about["params"]),
                source_name=about["source_name"],
                source_weights=about["source_weights_sha256"],
                trained=json.loads(about.get("trained", "{}")),
                tensors=tensors,
            )
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} is no adapter",
                found=str(error) or type(error).__name__,
                wanted=f"a safetensors file with the metadata of {FORMAT}",
                mend="make one with `foveate train`",
            ) from error

    def write(self, path: Path) -> Adapter:
        """Writes it to a file, whole or not at all, and returns it with that path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "format": FORMAT,
            "method": self.method,
            "params": json.dumps(self.params, sort_keys=True),
            "source_name": self.source_name,
            "source_weights_sha256": self.source_weights,
            "trained": json.dumps(self.trained, sort_keys=True),
        }
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file({k: v.contiguous() for k, v in self.tensors.items()}, name, metadata=about)
            os.chmod(name, 0o644)  # a temporary file is its owner's only
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
        return Adapter(**{**vars(self), "path": path})

    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def check_model(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError unless it was trained on exactly these weights."""
        found = checkpoint.weights_sha256()
        if found != self.source_weights:
            raise CheckpointError(
                f"the adapter {self.path} for {self.method} belongs to another model",
                found=f"weights {found[:12]} of {checkpoint.path}",
                wanted=f"weights {self.source_weights[:12]} of {self.source_name}",
                mend=f"train one: foveate train {self.method} --model {checkpoint.path}",
            )


def as_trained(plan: PruningPlan, adapters: Mapping[str, Adapter]) -> PruningPlan:
    """The plan with the options that its adapters were trained with, where it has the defaults.

    Raises:
        UsageError: an option that the weights were not trained for.
    """
    return PruningPlan(tuple(_as_trained(cut, adapters.get(cut.method)) for cut in plan.cuts))


def _check_options(cut: CutSpec, adapter: Adapter) -> None:
    """Options that shape what the weights mean, even where the weights' shapes would fit."""
    trained = adapter.params.get(_key(cut), {})
    for name in find_method(cut.method).Method.weight_options:
        if name in trained and trained[name] != _plain(cut.params.get(name)):
            raise UsageError(
                f"the adapter {adapter.path} was trained with another '{name}' than '{cut}' asks for",
                found=f"{name}={cut.params.get(name)}",
                wanted=f"{name}={trained[name]}",
                mend=f"leave {name} out, or train another adapter: foveate train {cut.method}",
            )


def _plain(value: object) -> object:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _as_trained(cut: CutSpec, adapter: Adapter | None) -> CutSpec:
    if adapter is None:
        return cut
    defaults = {each.name: each.default for each in describe_method(cut.method).options}
    trained = {
        k: v
        for k, v in adapter.params.get(_key(cut), {}).items()
        if k in defaults and cut.params.get(k) == defaults[k]
    }
    cut = replace(cut, params={**cut.params, **trained})
    _check_options(cut, adapter)
    return cut


def weights_of(
    plan: PruningPlan, adapters: Mapping[str, Adapter], trained: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The graphs' parameters that adapters hold, `cuts.<cut>.<parameter>` in float32.

    `trained` are the parameters wanted, with their shapes.

    Raises:
        CheckpointError: a tensor is missing, misshapen or of a precision that is not read.
        UsageError: a trained method without an adapter, or an adapter of a method that the plan has not.
    """
    owners = {f"cuts.{_key(cut)}.": cut for cut in plan.cuts}
    for method, adapter in adapters.items():
        if method not in {cut.method for cut in plan.cuts}:
            raise UsageError(
                f"the adapter {adapter.path} is for '{method}', which this plan does not have",
                found=str(plan),
                wanted=f"a plan with {method}",
                mend=f"add --method {method}, or leave the adapter out",
            )
    found: dict[str, Tensor] = {}
    for name, shape in trained.items():
        cut = next(cut for prefix, cut in owners.items() if name.startswith(prefix))
        found[name] = _tensor(cut, adapters.get(cut.method), name.removeprefix("cuts."), shape)
    return found


def _key(cut: CutSpec) -> str:
    """What a cut is called in parameter names."""
    return str(cut.site) if cut.layer is None else f"l{cut.layer}"


def _tensor(cut: CutSpec, adapter: Adapter | None, name: str, shape: tuple[int, ...]) -> Tensor:
    if adapter is None:
        raise UsageError(
            f"Method '{cut.method}' has weights of its own, and there is no adapter with them.",
            found="no adapter",
            wanted="--adapter FILE",
            mend=f"Train one: foveate train {cut.method} --model CHECKPOINT -o adapter.safetensors",
        )
    own = {key.partition(".")[0] for key in adapter.tensors}
    if name.partition(".")[0] not in own:
        raise UsageError(
            f"the adapter {adapter.path} has no weights for the cut '{cut}'",
            found="cuts " + ", ".join(sorted(own)),
            wanted=name.partition(".")[0],
            mend="name the cuts that it was trained for, or train another one",
        )
    tensor = adapter.tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype not in _READABLE:
        raise CheckpointError(
            f"the adapter {adapter.path} does not fit '{cut}'",
            found=f"{name}: " + ("missing" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"),
            wanted=f"{list(shape)} in float32, float16 or bfloat16",
            mend="export with the options that it was trained for: "
            + json.dumps(adapter.params, sort_keys=True),
        )
    return tensor.to(torch.float32)
