"""One tiny bundle for TensorRT, and the doubles of what builds engines of it. No TensorRT has run here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[2]
# Helpers of this folder, tests/tiny and tests/doubles, and the bundle that tests/runtime makes.
sys.path[:0] = [str(Path(__file__).parent), str(_TESTS), str(_TESTS / "runtime")]

from doubles.fixtures import cudart, tensorrt  # noqa: E402
from engines_made import engines  # noqa: E402

__all__ = ["cudart", "engines", "tensorrt"]


@pytest.fixture(scope="session")
def exported(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA bundle for TensorRT in fp32, with three cuts and without engines; do not write into it."""
    path = tmp_path_factory.mktemp("exported") / "bundle"
    return Path(shutil.copytree(engines, path, ignore=shutil.ignore_patterns("engines")))


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of one's own, in a folder of one's own."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))
