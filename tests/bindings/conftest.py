"""The bindings' names, read once for all workers of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# The modules beside this file, and the doubles.
sys.path[:0] = [str(HERE), str(HERE.parent)]

import fetch  # noqa: E402
import versions  # noqa: E402


@pytest.fixture(scope="session")
def bindings_cache(pytestconfig: pytest.Config) -> Path:
    """Where wheels stay between runs."""
    assert pytestconfig.cache is not None, "run pytest with its cache: the wheels of the bindings lie there"
    return Path(pytestconfig.cache.mkdir("tensorrt-bindings"))


@pytest.fixture(scope="session")
def surfaces(bindings_cache: Path) -> dict[str, dict[str, Any]]:
    """Every name of the bindings, by version."""
    return {each.version: fetch.describe(each, bindings_cache) for each in versions.ALL}
