"""`foveate verify` from outside: what it writes, which checkpoint it takes, what it says when it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import plant
import pytest
import tiny
from ladders import settings
from typer.testing import CliRunner

from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import BundleError, CheckpointError, ParityError, UsageError
from foveate.tools.cli.main import build_app
from foveate.tools.parity.ladder import Ladder
from foveate.tools.parity.report import Status
from foveate.tools.parity.verify import find_checkpoint, require_parity, verify

SMALL = settings("image first", budgets=("own rule",))


def test_a_pass_is_written_into_the_bundle(copy: Path) -> None:
    said: list[str] = []
    report = verify(copy, settings=SMALL, say=said.append)
    assert report.passed
    assert [line.split()[0] for line in said[1:]] == ["P0", "P1", "P2", "P3", "P4", "P5"]
    document = json.loads((copy / "parity.json").read_text())
    assert document["passed"]
    assert document["rungs"][5]["status"] == "not applicable"
    assert "no task set" in document["rungs"][5]["checks"][0]["detail"]
    parity = Bundle.open(copy, check="full").manifest.parity
    assert parity is not None
    assert parity.passed
    assert parity.summary["P4"]["status"] == "passed"
    require_parity(report)


def test_a_failure_is_written_too(copy: Path) -> None:
    plant.change_weight(copy, "decoder", "language_model.layers.2.mlp.down_proj.weight")
    report = verify(copy, settings=SMALL, check="none")
    with pytest.raises(ParityError, match="stage decoder, layer 2, index") as caught:
        require_parity(report)
    assert caught.value.exit_code == 5
    parity = Bundle.open(copy, check="none").manifest.parity
    assert parity is not None
    assert not parity.passed
    document = json.loads((copy / "parity.json").read_text())
    assert document["first_divergence"]["check"]["where"]["layer"] == 2


def test_a_changed_file_is_found_before_anything_is_run(copy: Path) -> None:
    plant.change_weight(copy, "decoder", "language_model.layers.2.mlp.down_proj.weight")
    with pytest.raises(BundleError, match=r"weights\.bin"):
        verify(copy, settings=SMALL)


def test_some_rungs_make_no_verdict(copy: Path) -> None:
    report = verify(copy, rungs=("P0",), settings=SMALL)
    assert report.rung("P0").status is Status.PASSED
    assert not (copy / "parity.json").exists()
    assert Bundle.open(copy).manifest.parity is None


def test_an_unknown_rung(copy: Path) -> None:
    with pytest.raises(UsageError, match="P0, P1"):
        verify(copy, rungs=("P7",))


def test_the_checkpoint_is_recognised_not_trusted(default: tuple[Path, Bundle], tmp_path: Path) -> None:
    checkpoint, bundle = default
    manifest = bundle.manifest
    assert find_checkpoint(manifest) == checkpoint
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    assert find_checkpoint(manifest, moved) == moved
    other = tiny.make_llava(tmp_path / "other", seed=9)
    with pytest.raises(CheckpointError, match="not the checkpoint of this bundle"):
        find_checkpoint(manifest, other)
    tiny.edit_config(moved, projector_hidden_act="relu")
    with pytest.raises(CheckpointError, match=r"another config\.json"):
        find_checkpoint(manifest, moved)


def test_a_checkpoint_that_has_gone(default: tuple[Path, Bundle]) -> None:
    manifest = default[1].manifest
    gone = manifest.model_copy(
        update={"source": manifest.source.model_copy(update={"path": "/nowhere/at/all"})}
    )
    with pytest.raises(CheckpointError, match="--checkpoint") as caught:
        find_checkpoint(gone)
    assert "/nowhere/at/all" in str(caught.value)


def test_ties_are_drawn_again(copy: Path, ladder: Callable[[Path], Ladder]) -> None:
    """No prompt of a ladder has a cut that rounding could turn; the first picture drawn is not special."""
    made = ladder(copy)
    assert not made.untested
    assert all(not trace.fragile for _, _, trace in made.pruned())


def test_the_command_leaves_with_five(copy: Path, tmp_path: Path) -> None:
    plant.change_weight(copy, "decoder", "lm_head.weight")
    wrong = plant.write_again(copy, tmp_path / "wrong")
    done = CliRunner().invoke(build_app(), ["verify", str(wrong), "--rung", "p0", "--rung", "p1", "--json"])
    assert done.exit_code == 5, done.output
    document = json.loads(done.stdout)
    assert document["first_divergence"]["rung"] == "P1"
    assert "logits" in document["first_divergence"]["check"]["name"]
    assert "P1 failed at stage decoder" in done.stderr
