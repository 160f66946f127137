import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# make.py and tests/tiny/: fixtures are not part of the package.
sys.path[:0] = [str(HERE), str(HERE.parent)]

import make  # noqa: E402
from doubles.fixtures import cudart, tensorrt  # noqa: E402, F401
from engines_made import CUTS, engines, engines_copy  # noqa: E402, F401
from tiny.once import once, shared_folder  # noqa: E402

from foveate.runtime.bundle import Bundle  # noqa: E402
from foveate.runtime.generate import Generation  # noqa: E402
from foveate.runtime.pipeline import Pipeline, load  # noqa: E402


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A small valid bundle that a test may break."""
    return make.bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real bundles of one seeded tiny LLaVA: unpruned, and with three cuts and original positions."""
    root = once(shared_folder(tmp_path_factory, "runtime") / "bundles", _export)
    return {name: root / name for name in ("plain", "pruned")}


@pytest.fixture(scope="session")
def cuda_bundle(bundles: dict[str, Path]) -> Path:
    """The pruned one for target cuda, in half precision."""
    from foveate.export.pipeline import export_model
    from foveate.pruning.plan import parse_plan

    root = bundles["pruned"].parent
    chosen: Any = {"plan": parse_plan(CUTS), "positions": "original", "target": "cuda"}
    return once(root / "cuda", lambda path: export_model(root / "checkpoint", path, **chosen))


def _export(root: Path) -> None:
    import tiny
    import torch

    from foveate.export.pipeline import export_model
    from foveate.pruning.plan import parse_plan

    torch.set_num_threads(1)
    root.mkdir()
    checkpoint = tiny.make_llava(root / "checkpoint")
    export_model(checkpoint, root / "plain", plan=parse_plan(["none"]))
    export_model(checkpoint, root / "pruned", plan=parse_plan(CUTS), positions="original")


@pytest.fixture(scope="session")
def pipelines(bundles: dict[str, Path]) -> dict[tuple[str, str], Pipeline]:
    """By (bundle, layout)."""
    return {
        (name, layout): load(path, layout=layout, threads=1)
        for name, path in bundles.items()
        for layout in ("fused", "segmented")
    }


@pytest.fixture(scope="session")
def alone(pipelines: dict[tuple[str, str], Pipeline]) -> Callable[[tuple[str, str]], list[Generation]]:
    """What each of `many.asks` gives alone, by (bundle, layout)."""
    import many

    @cache
    def answers(which: tuple[str, str]) -> list[Generation]:
        return [pipelines[which].generate(*ask) for ask in many.asks(which[0])]

    return answers
