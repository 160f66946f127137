"""Where bundles are kept between commands: a name for everything that they are made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foveate.tools import cache


def test_a_name_changes_with_the_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cache.cached_bundle("demo", ["cls-knee"])
    assert first.parent == tmp_path / "foveate"
    assert first == cache.cached_bundle("demo", ["cls-knee"]) != cache.cached_bundle("demo", ["vtc-cls"])


@pytest.mark.parametrize("source", ["runtime/manifest.py", "runtime/bundle_writer.py", "export/weights.py"])
def test_a_name_changes_with_what_writes_bundles(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bundle of an older format under the same name would never load again."""
    root = Path(cache.__file__).parent.parent
    for folder in ("export", "pruning", "runtime"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "_ROOT", tmp_path)
    before = cache.cached_bundle("demo-random")
    with (tmp_path / source).open("a") as file:
        file.write("# changed\n")
    assert cache.cached_bundle("demo-random") != before
