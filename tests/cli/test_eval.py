"""`foveate eval --methods` refuses what it cannot compare, before anything is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Foveate = Callable[..., Result]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("demo", "--methods", "vtc-clss"), "Did you mean vtc-cls"),
        (("demo", "--methods", "cls-knee:min_keep=zero"), "min_keep"),
        (("demo", "--methods", "fastv@9"), "layer"),
        (("demo", "--methods", "all", "--budgets", "0"), "0 < budget <= 1"),
        (("demo", "--methods", "all", "--budgets", "half"), "separated by commas"),
        (("demo", "--methods", "all", "--site", "encoder"), "--site encoder does not go with --methods"),
        (("demo", "--methods", "all", "--layout", "segmented"), "--layout segmented does not go"),
        (("somewhere", "--methods", "all"), "foveate eval demo --methods all"),
    ],
)
def test_refused(foveate: Foveate, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = foveate("eval", *words, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
