"""Exports that the parity tests share."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from foveate.runtime.bundle import Bundle

if TYPE_CHECKING:
    from table import Row

    from foveate.tools.parity.families import Oracle
    from foveate.tools.parity.ladder import Ladder
    from foveate.tools.parity.prompts import Front
    from foveate.tools.parity.reference import Reference

# table.py, plant.py, ladders.py and tests/tiny/: helpers are not part of the package.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], Path]:
    """A row's checkpoint; made once, also when several workers ask."""
    import tiny
    from tiny.once import once, shared_folder

    shared = shared_folder(tmp_path_factory, "parity")

    def make(row: Row) -> Path:
        folder = shared / hashlib.sha256(row.name.encode()).hexdigest()[:12]
        folder.mkdir(exist_ok=True)
        return once(folder / "checkpoint", lambda path: tiny.make(row.family, path, **row.checkpoint))

    return make


@pytest.fixture(scope="session")
def exported(checkpoint_of: Callable[[Row], Path]) -> Callable[[Row], tuple[Path, Bundle]]:
    """A row's checkpoint and bundle; made once as well."""
    from adapters import draw_adapters
    from tiny.once import once

    from foveate.export import export_model

    def make(row: Row) -> tuple[Path, Bundle]:
        checkpoint = checkpoint_of(row)

        def export(bundle: Path) -> None:
            adapters = draw_adapters(checkpoint, row.plan, checkpoint.parent / "adapters")
            chosen: Any = {"plan": row.plan, "layouts": row.layouts, "positions": row.positions}
            export_model(checkpoint, bundle, adapters=adapters, **chosen)

        return checkpoint, Bundle.open(once(checkpoint.parent / "bundle", export))

    return make


@pytest.fixture(scope="session")
def default(exported: Callable[[Row], tuple[Path, Bundle]]) -> tuple[Path, Bundle]:
    """Checkpoint and bundle of the table's first row."""
    from table import DEFAULT

    return exported(DEFAULT)


@pytest.fixture(scope="session")
def oracle(default: tuple[Path, Bundle]) -> Oracle:
    """transformers with the default checkpoint."""
    from foveate.tools.parity.families.llava import Oracle

    return Oracle(default[0])


@pytest.fixture(scope="session")
def reference(oracle: Oracle) -> Reference:
    """The pruned reference of the default checkpoint."""
    from foveate.tools.parity.reference import Reference

    return Reference(oracle)


@pytest.fixture(scope="session")
def front(oracle: Oracle) -> Front:
    """The default checkpoint's processor."""
    from foveate.tools.parity.prompts import Front

    return Front(oracle)


@pytest.fixture
def ladder(reference: Reference, front: Front) -> Callable[[Path], Ladder]:
    """A small ladder for a (damaged) copy of the default bundle."""
    from ladders import settings

    from foveate.tools.parity.ladder import Ladder

    few = settings("two images", budgets=("own rule", "ratio"))
    return lambda path: Ladder(Bundle.open(path, check="none"), reference, front, few)


@pytest.fixture
def copy(default: tuple[Path, Bundle], tmp_path: Path) -> Path:
    """A copy of the default bundle to damage."""
    return Path(shutil.copytree(default[1].path, tmp_path / "bundle"))
