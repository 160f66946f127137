"""The word `demo`: exported on first use, kept for the next time; the tour shows and measures everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from foveate.runtime.errors import CheckpointError, InputError
from foveate.tools import demo

Foveate = Callable[..., Result]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of our own, shared by the tests of this file."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "foveate"


def test_the_word_is_exported_once(foveate: Foveate, cache: Path) -> None:
    words = ("run", "demo", "--image", "demo:1", "--prompt", "What color is the circle?", "--json")
    first, second = foveate(*words), foveate(*words)
    assert first.exit_code == second.exit_code == 0, first.stderr
    assert "first use" in first.stderr
    assert "first use" not in second.stderr
    assert json.loads(first.stdout)["token_ids"] == json.loads(second.stdout)["token_ids"]
    assert Path(json.loads(first.stdout)["bundle"]).parent == cache


@pytest.mark.slow  # CI runs it whole: make demo
def test_the_tour(foveate: Foveate, tmp_path: Path) -> None:
    done = foveate("demo", "--out", tmp_path / "out", "--scenes", "4", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (Path(document["bundle"]) / "manifest.json").is_file()
    assert all(Path(picture).is_file() for picture in document["pictures"])
    for answer in document["answers"]:
        assert answer["right"] == (answer["text"].strip() == answer["expected"])
        assert answer["token_ids"]
        assert [site["site"] for site in answer["pruning"]["sites"]] == ["encoder", "decoder@2"]
    assert document["parity"]["passed"]
    assert {rung["key"] for rung in document["parity"]["rungs"]} == {"P0", "P1", "P2", "P3", "P4", "P5"}
    full, pruned, random = document["accuracy"]["points"]
    assert full["kept"] == 1
    assert pruned["method"] != random["method"]
    assert pruned["kept"] == pytest.approx(random["kept"], abs=0.02)
    assert pruned["kept"] < 0.5
    assert set(document["timings"]) == {"export", "load", "answers", "parity", "accuracy"}


def test_other_words_are_paths(tmp_path: Path) -> None:
    assert demo.resolve_bundle(str(tmp_path)) == tmp_path
    assert demo.resolve_checkpoint("./demo") == Path("demo")
    assert demo.resolve_image("cat.jpg") == Path("cat.jpg")
    assert demo.resolve_image("demo:x") == Path("demo:x")


def test_scenes_of_the_demo_model() -> None:
    first, again, other = (demo.resolve_image(word) for word in ("demo", "demo:0", "demo:1"))
    assert first == again != other
    with pytest.raises(InputError, match="demo:0 to demo:999"):
        demo.resolve_image("demo:1000")


def test_an_install_without_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path)
    with pytest.raises(CheckpointError, match="reinstall"):
        demo.resolve_checkpoint("demo")


def test_the_hash_changes_with_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = demo.checkpoint_hash(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    assert demo.checkpoint_hash(tmp_path) != before
