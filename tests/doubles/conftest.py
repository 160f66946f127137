"""The doubles' own tests: what they refuse is what the documentation says that the real things refuse."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent.parent)]

from doubles.cudart import Cudart  # noqa: E402
from doubles.fixtures import cudart, tensorrt  # noqa: E402
from doubles.trt_graphs import Bench, Ready  # noqa: E402

gc.freeze()  # the fixtures collect after every test: what has been imported by now need not be looked at

__all__ = ["cudart", "tensorrt"]


@pytest.fixture
def make(tensorrt: ModuleType, cudart: Cudart) -> Iterator[Callable[..., Ready]]:
    """Builds a graph with profiles and gives its engine with a context; all is given back after the test."""
    made = []

    def ready(model: bytes, *profiles: dict[str, Any], strategy: Any = None, flag: Any = None) -> Ready:
        bench = Bench(tensorrt, cudart, model)
        for profile in profiles:
            bench.profile(**profile)
        if flag is not None:
            bench.config.set_flag(flag)
        made.append(Ready(bench, strategy))
        return made[-1]

    yield ready
    for each in made:
        each.close()
    gc.collect()
