"""A tiny bundle for TensorRT with engines, built and run by the doubles: none of this has run on a GPU."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from doubles import cudart as cudart_double
from doubles.tensorrt.install import install
from tiny.once import once, shared_folder

from foveate.runtime.bundle import Bundle

CUTS = ["cls-knee:min_keep=4", "random@1:ratio=0.7", "text-relevance@3:ratio=0.6"]
PROFILE = "batch=4,prompt=112,new=32,images=2,logits=8"
NATIVE, PORTABLE = "11.4.0.106", "10.16.1.11"


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded tiny LLaVA with three cuts, and native engines of TensorRT 11.4 for it; not to be changed."""
    return once(shared_folder(tmp_path_factory, "tensorrt") / "bundles", _export) / "bundle"


@pytest.fixture
def engines_copy(engines: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(engines, tmp_path / "bundle"))


def _export(root: Path) -> None:
    import tiny
    import torch

    from foveate.export.pipeline import export_model
    from foveate.pruning.plan import parse_plan

    torch.set_num_threads(1)
    root.mkdir()
    checkpoint = tiny.make_llava(root / "checkpoint")
    export_model(
        checkpoint,
        root / "bundle",
        plan=parse_plan(CUTS),
        positions="original",
        target="tensorrt",
        dtype="fp32",
    )
    build(root / "bundle")


def build(path: Path, profile: str = PROFILE, version: str = NATIVE, **words: object) -> None:
    """Engines as `foveate build` makes them, on the doubles."""
    from foveate.export.engines.build import build as build_engines
    from foveate.export.engines.intent import intend
    from foveate.export.engines.machine import look_around
    from foveate.export.engines.options import make_options

    with Doubles(version):
        here = look_around()
        options = make_options(here, **words)
        build_engines(intend(Bundle.open(path), options, profile, version), here)


class Doubles:
    """Inside, `tensorrt` and `cuda.bindings.runtime` are doubles; gives the latter."""

    def __init__(self, version: str = NATIVE) -> None:
        self._patch = pytest.MonkeyPatch()
        self._version = version

    def __enter__(self) -> cudart_double.Cudart:
        gpu = cudart_double.install(self._patch)
        self._before: str | None = getattr(sys.modules.get("tensorrt"), "__version__", None)
        install(self._patch, version=self._version)
        return gpu

    def __exit__(self, *error: object) -> None:
        self._patch.undo()
        if self._before is not None:  # there is one module of the double, which is of one version
            install(self._patch, version=self._before)
