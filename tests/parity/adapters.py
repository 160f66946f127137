"""Adapters of seeded weights, for methods that have some: nothing is trained, parity does not mind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from foveate.export.adapter import Adapter
from foveate.export.checkpoint import Checkpoint
from foveate.export.families import find_family
from foveate.export.methods import build_method
from foveate.export.vision_stage import model_shape
from foveate.pruning.plan import CutSpec, parse_plan


def draw_adapters(checkpoint: Path, plan: Sequence[str], folder: Path, seed: int = 0) -> list[Path]:
    """A file for each trained method of the plan, with weights for all of its cuts."""
    source = Checkpoint(checkpoint)
    _, family = find_family(source.config)
    config = family.Config.read(source.config)
    shape = model_shape(family, config)
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    params: dict[str, dict[str, dict[str, object]]] = {}
    for cut in parse_plan(plan, config.text.num_layers).cuts:
        for name, parameter in build_method(cut, shape).named_parameters():
            tensors.setdefault(cut.method, {})[f"{key_of(cut)}.{name}"] = drawn(parameter, draw)
            params.setdefault(cut.method, {})[key_of(cut)] = dict(cut.params)
    files = []
    for method, weights in tensors.items():
        made = Adapter(
            folder, method, params[method], source.path.name, source.weights_sha256(), {"seed": seed}, weights
        )
        files.append(made.write(folder / f"{method}.safetensors").path)
    return files


def key_of(cut: CutSpec) -> str:
    return str(cut.site) if cut.layer is None else f"l{cut.layer}"


def drawn(parameter: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Matrices that keep the size of what they multiply, vectors around 1 (scales and shifts alike)."""
    values = torch.randn(parameter.shape, generator=draw)
    return values / parameter.shape[0] ** 0.5 if parameter.dim() > 1 else 1 + 0.1 * values
