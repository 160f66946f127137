"""The soak's command: what can be known at once is refused before a bundle is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.runtime.errors import UsageError
from foveate.tools import soak
from foveate.tools.places import require_writable

NOWHERE = "nowhere"  # a bundle that is opened would end with 4


@pytest.mark.parametrize(
    "words",
    [
        ("--minutes", "0"),
        ("--minutes", "-1"),
        ("--minutes", "nan"),
        ("--minutes", "inf"),
        *((f"--{name}", "0") for name in ("slots", "clients", "rows", "requests", "tokens", "threads")),
    ],
    ids="=".join,
)
def test_numbers_out_of_range(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main([NOWHERE, *words]) == UsageError.exit_code
    assert f"{words[0]} is out of range" in capsys.readouterr().err


def test_a_place_for_results_is_looked_at_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert soak.main([NOWHERE, "--json", str(file / "soak.json")]) == UsageError.exit_code
    assert "cannot be written" in capsys.readouterr().err
    for bad in (file, file / "deeper", Path("zero\0")):
        with pytest.raises(UsageError, match="nothing was measured yet"):
            require_writable(bad)
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]  # and nothing in it
