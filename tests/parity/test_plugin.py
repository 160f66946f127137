"""The method of docs/your-own-method.md: installed from the page's own blocks, exported, verified, run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ladders import settings
from table import DEFAULT, Row
from tiny.shared import make_image

from foveate.export import export_model
from foveate.pruning import registry
from foveate.runtime.options import Budget, GenerateOptions
from foveate.runtime.pipeline import load
from foveate.tools.parity.verify import verify

PAGE = Path(__file__).parents[2] / "docs" / "your-own-method.md"
FILES = ("keep_norm.py", "keep_norm_oracle.py", "pyproject.toml")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's package, by pip, in a folder of its own."""
    blocks = re.findall(r"^```(?:python|toml)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, body in zip(FILES, blocks, strict=True):
        (source / name).write_text(body)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True, timeout=120)
    monkeypatch.syspath_prepend(str(site))
    caches = (registry._entry_points, registry.describe_method)
    for cached in caches:
        cached.cache_clear()
    yield source
    for cached in caches:
        cached.cache_clear()


def test_the_page(installed: Path, checkpoint_of: Callable[[Row], Path], tmp_path: Path) -> None:
    lines = (installed / FILES[0]).read_text().strip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
    assert "keep-norm" in registry.method_names()
    info = registry.describe_method("keep-norm")
    assert (info.kind, info.title, [option.name for option in info.options]) == (
        "baseline",
        "longest rows",
        ["ratio"],
    )
    checkpoint = checkpoint_of(DEFAULT)
    made = export_model(checkpoint, tmp_path / "bundle", plan=["keep-norm:ratio=0.3"], layouts=("fused",))
    report = verify(
        made.path, checkpoint, rungs=("P0", "P1", "P2"), settings=settings("image first"), record=False
    )
    assert report.passed, report.first_divergence
    options = GenerateOptions(max_new_tokens=2, keep={"encoder": Budget(tokens=12)})
    answer = load(made.path).generate(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
        [make_image(3)],
        options,
    )
    assert len(answer.token_ids) == 2
    assert answer.report.kept == 12
