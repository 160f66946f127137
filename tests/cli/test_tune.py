"""`foveate train` and `foveate plan` from the command line, with what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Foveate = Callable[..., Result]

SMALL = ("scenes=5", "batch=8", "check_every=2", "check_scenes=2", "warmup=1")
TINY = [word for setting in SMALL for word in ("--set", setting)]


def test_train_writes_an_adapter_that_an_export_takes(foveate: Foveate, tmp_path: Path) -> None:
    out = tmp_path / "gates.safetensors"
    done = foveate("train", "dyvte", "--model", "demo", "-o", out, "--steps", 3, *TINY, "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["method"] == "dyvte"
    assert set(said["cuts"]) == {"l1", "l2", "l3", "l4", "l5"}
    assert said["trained"]["recipe"]["steps"] == 3
    assert {"right", "agreement"} <= set(said["trained"]["validation"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".csv", ".png"}
    bundle = tmp_path / "bundle"
    words = ("--method", "dyvte@2+4", "--adapter", out, "--layout", "fused", "--json")
    exported = foveate("export", "demo", "-o", bundle, *words)
    assert exported.exit_code == 0, exported.stderr
    assert [cut["layer"] for cut in json.loads(exported.stdout)["pruning"]] == [2, 4]
    asked = foveate("run", bundle, "--image", "demo", "--prompt", "What color is the star?", "--json")
    assert asked.exit_code in (0, 10), asked.stderr  # untrained gates may keep everything
    other = foveate("export", "demo", "-o", tmp_path / "b", "--method", "dyvte@2:hidden=7", "--adapter", out)
    assert other.exit_code == 2
    assert "another 'hidden'" in " ".join(other.stderr.split())
    assert not (tmp_path / "b").exists()


def test_an_adapter_of_another_model_is_refused(foveate: Foveate, checkpoint: Path, tmp_path: Path) -> None:
    from foveate.tools.demo import CHECKPOINT

    shipped = CHECKPOINT.parent / "adapters" / "dyvte.safetensors"
    words = ("--method", "dyvte@2", "--adapter", shipped, "--layout", "fused")
    refused = foveate("export", checkpoint, "-o", tmp_path / "bundle", *words)
    assert refused.exit_code == 3
    assert "belongs to another model" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("cls-knee",), "cannot be trained"),
        (("nonsense",), "no pruning method"),
        (("dyvte", "--set", "speed=3"), "no such setting"),
        (("dyvte", "--set", "steps=none"), "no such setting"),
        (("dyvte", "--resume"), "no training run to resume"),
        (("quecc", "--set", "stride=3", "--set", "steps=2"), "whole tiles"),
    ],
)
def test_train_refuses_before_it_writes(
    foveate: Foveate, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = foveate("train", *words, "-o", tmp_path / "a.safetensors")
    assert done.exit_code == 2, done.stderr
    assert told in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_train_refuses_other_models_and_other_names(
    foveate: Foveate, checkpoint: Path, tmp_path: Path
) -> None:
    other = foveate("train", "dyvte", "--model", checkpoint, "-o", tmp_path / "a.safetensors")
    assert other.exit_code == 2
    assert "cannot be trained on the demo's scenes" in " ".join(other.stderr.split())
    missing = foveate("train", "dyvte", "--model", tmp_path / "none", "-o", tmp_path / "a.safetensors")
    assert missing.exit_code == 3
    named = foveate("train", "dyvte", "-o", tmp_path / "a.bin")
    assert named.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_plan_says_what_a_cost_buys(foveate: Foveate) -> None:
    done = foveate("plan", "--share", "0.25", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    errors = [row["error"] for row in said["choices"]]
    assert errors == sorted(errors)
    assert all(row["cost_share"] <= 0.25 + 1e-9 for row in said["choices"])
    assert said["best_tokens"] == pytest.approx(0.015 * 50 / 0.062)
    people = foveate("plan", "--share", "0.25", "--sizes", "7,70")
    assert "12 visual tokens" in people.stdout
    assert "70" in people.stderr  # beyond what the law was fitted on
    reading = foveate("plan", "--task", "reading", "--json")
    assert json.loads(reading.stdout)["best_tokens"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("--share", "0"),
        ("--share", "0.00001"),
        ("--share", "nan"),
        ("--reference", "7"),
        ("--reference", "seven@576"),
        ("--reference", "7@0"),
        ("--sizes", ""),
        ("--sizes", "1,x"),
        ("--sizes", "-1"),
        ("--task", "dancing"),
        ("--text", "-1"),
    ],
)
def test_plan_refuses_what_it_cannot_read(foveate: Foveate, words: tuple[str, ...]) -> None:
    assert foveate("plan", *words).exit_code == 2
