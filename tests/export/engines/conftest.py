"""One tiny bundle for TensorRT, and the doubles of what builds engines of it. No TensorRT has run here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parents[2]),
]  # helpers, tests/tiny, tests/doubles

from doubles.fixtures import cudart, tensorrt  # noqa: E402

__all__ = ["cudart", "tensorrt"]

PLAN = ["cls-knee:min_keep=3", "text-relevance@2:profile=safe"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA bundle for TensorRT, in fp32; do not write into it."""
    import tiny
    import torch

    from foveate.export import export_model

    torch.set_num_threads(1)
    checkpoint = tiny.make_llava(tmp_path_factory.mktemp("engines") / "checkpoint")
    path = checkpoint.parent / "bundle"
    export_model(checkpoint, path, plan=PLAN, target="tensorrt", layouts=("segmented",))
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of one's own, in a folder of one's own."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))
