"""Exports that the parity tests share, and short ways to climb a ladder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # table.py, plant.py, tiny.py

import tiny
from table import DEFAULT, Row

from foveate.export import export_model
from foveate.pruning.plan import parse_plan
from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import UsageError
from foveate.tools.parity.ladder import Ladder, Settings
from foveate.tools.parity.prompts import CASES, Front
from foveate.tools.parity.reference import Reference

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], tuple[Path, Bundle]]:
    """A row's checkpoint and bundle; made once, also when several workers ask."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-") else base) / "parity"

    def make(row: Row) -> tuple[Path, Bundle]:
        folder = shared / hashlib.sha256(row.name.encode()).hexdigest()[:12]
        checkpoint, bundle = folder / "checkpoint", folder / "bundle"
        if not (bundle / "manifest.json").is_file():
            if not checkpoint.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                made = tiny.make_llava(folder / f"making-{os.getpid()}", **row.checkpoint)
                with contextlib.suppress(OSError):  # another worker was faster
                    made.rename(checkpoint)
            with contextlib.suppress(UsageError):  # again
                export_model(
                    checkpoint,
                    bundle,
                    plan=parse_plan(row.plan),
                    layouts=row.layouts,
                    positions=row.positions,
                )
        return checkpoint, Bundle.open(bundle)

    return make


@pytest.fixture(scope="session")
def default(exported: Callable[[Row], tuple[Path, Bundle]]) -> tuple[Path, Bundle]:
    """Checkpoint and bundle of the table's first row."""
    return exported(DEFAULT)


@pytest.fixture(scope="session")
def reference(default: tuple[Path, Bundle]) -> Reference:
    """transformers with the default checkpoint."""
    return Reference(default[0])


@pytest.fixture(scope="session")
def front(default: tuple[Path, Bundle]) -> Front:
    """The default checkpoint's processor."""
    return make_front(*default)


def make_front(checkpoint: Path, bundle: Bundle) -> Front:
    """transformers' processor of a checkpoint."""
    model = bundle.manifest.model
    return Front(checkpoint, model.image_token_id, model.visual_tokens_per_image)


def settings(*names: str, budgets: tuple[str, ...] = ("own rule", "ratio", "tokens")) -> Settings:
    """Settings for the named cases (none: all)."""
    cases = tuple(case for case in CASES if case.name in names) or CASES
    return Settings(cases=cases, budgets=budgets, new_tokens=10, threads=1)


@pytest.fixture
def ladder(default: tuple[Path, Bundle], reference: Reference, front: Front) -> Callable[[Path], Ladder]:
    """A small ladder for a (damaged) copy of the default bundle."""

    def make(path: Path) -> Ladder:
        return Ladder(
            Bundle.open(path, check="none"),
            reference,
            front,
            settings("two images", budgets=("own rule", "ratio")),
        )

    return make


@pytest.fixture
def copy(default: tuple[Path, Bundle], tmp_path: Path) -> Path:
    """A copy of the default bundle to damage."""
    target = tmp_path / "bundle"
    shutil.copytree(default[1].path, target)
    return target
