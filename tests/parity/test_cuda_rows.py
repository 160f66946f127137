"""Target cuda on the ladder, in half precision: its operators have kernels on the CPU, too.

These kernels are not CUDA's. What is shown is that the graphs mean what they should.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ladders import settings
from table import DEFAULT
from tiny.once import once

from foveate.export import export_model
from foveate.runtime.bundle import Bundle
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.prompts import Front
from foveate.tools.parity.reference import Reference
from foveate.tools.parity.report import Status
from foveate.tools.parity.rungs import climb


@pytest.fixture(scope="module")
def written(default: tuple[Path, Bundle]) -> Bundle:
    """The table's first row for CUDA, in fp16."""

    def export(path: Path) -> None:
        chosen: Any = {"plan": DEFAULT.plan, "positions": DEFAULT.positions}
        export_model(default[0], path, target="cuda", **chosen)

    return Bundle.open(once(default[0].parent / "cuda", export))


def test_it_is_near_the_checkpoint(written: Bundle, reference: Reference, front: Front) -> None:
    """Stages, kept indices, logits and tokens; the gates are those of half precision (docs/parity.md)."""
    assert written.manifest.precision.stages["decoder"] == "fp16"
    assert (decoders := _decoders(written))
    assert all("GroupQueryAttention" in each.read_text("latin1") for each in decoders)
    few = settings("two images", budgets=("own rule",))
    rungs = climb(Ladder(written, reference, front, few), ("P0", "P1", "P2", "P3", "P4"))
    bad = [f"{r.key}: {c.name}: {c.detail}" for r in rungs for c in r.checks if c.status is not Status.PASSED]
    assert not bad
    assert [rung.status for rung in rungs] == [Status.PASSED] * 5


def _decoders(bundle: Bundle) -> list[Path]:
    return [bundle.stage_path(name) for name in bundle.manifest.stages if name.startswith("decoder")]
