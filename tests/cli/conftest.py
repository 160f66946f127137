"""One seeded tiny LLaVA, its bundle, an image, and `foveate` as a function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/tiny/: fixtures are not part of the package

CUTS = ("cls-knee:min_keep=4", "text-relevance@2:profile=safe")
Foveate = Callable[..., Result]


@pytest.fixture(scope="session")
def foveate() -> Foveate:
    """The command line, in this process: `foveate("run", bundle, "--prompt", "Hi")`."""
    from foveate.tools.cli.main import build_app

    app = build_app()

    def call(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA folder; do not write into it."""
    import tiny
    import torch

    torch.set_num_threads(1)
    return tiny.make_llava(tmp_path_factory.mktemp("cli") / "checkpoint")


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, foveate: Foveate) -> Path:
    """Its bundle, exported by the command itself, in the fused layout; do not write into it."""
    path = checkpoint.parent / "bundle"
    cuts = [word for cut in CUTS for word in ("--method", cut)]
    done = foveate("export", checkpoint, "-o", path, "--layout", "fused", *cuts)
    assert done.exit_code == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def image(checkpoint: Path) -> Path:
    """A picture with something in it."""
    import tiny

    path = checkpoint.parent / "image.png"
    tiny.make_image(1).save(path)
    return path
