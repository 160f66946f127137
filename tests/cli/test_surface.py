"""Help is quick and complete, errors and interrupts leave with their codes, bugs keep their trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest
import typer
from typer.testing import Result

from foveate.runtime.errors import FoveateError, InputError
from foveate.tools.cli import main as surface

Foveate = Callable[..., Result]
# Not pydantic: typer itself checks values with it.
HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "numpy", "PIL", "tokenizers"}


@pytest.mark.parametrize("verb", ["", *surface.VERBS])
def test_help_imports_nothing_heavy_and_little_else(verb: str) -> None:
    """What it takes is imports: 435 modules with the pinned libraries, 22 of them ours."""
    code = (
        "import sys\nfrom foveate.tools.cli.main import main\n"
        "try: main()\nfinally: print('loaded:', *sys.modules, file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, *([verb] if verb else []), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.partition("loaded:")[2].split())
    assert "foveate.tools.cli.main" in loaded
    assert not HEAVY & loaded
    assert len(loaded) < 460  # other Pythons load some more of their own
    assert sum(name.startswith("foveate") for name in loaded) <= 22
    assert ("foveate " + verb).strip() in done.stdout


@pytest.mark.parametrize("verb", surface.VERBS)
def test_help_teaches(foveate: Foveate, verb: str) -> None:
    shown = foveate(verb, "--help")
    assert shown.exit_code == 0
    assert "Examples" in shown.stdout
    assert "--json" in shown.stdout


def test_root_help_lists_every_verb(foveate: Foveate) -> None:
    shown = foveate("--help").stdout
    assert all(verb in shown for verb in surface.VERBS)


def test_version(foveate: Foveate) -> None:
    assert foveate("--version").stdout.strip() == f"foveate {version('foveate')}"


def _kinds(root: type[FoveateError] = FoveateError) -> list[type[FoveateError]]:
    return [kind for child in root.__subclasses__() for kind in (child, *_kinds(child))]


@pytest.mark.parametrize("kind", _kinds())
def test_errors_leave_with_their_code(kind: type[FoveateError], capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise kind("something [is] off", mend="turn it on")

    with pytest.raises(typer.Exit) as left:
        surface._guard(command)()
    assert left.value.exit_code == kind.exit_code > 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: something [is] off. To mend it: turn it on.")


def test_a_bug_keeps_its_trace() -> None:
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        surface._guard(command)()


def test_the_guard_keeps_the_signature() -> None:
    def command(name: str) -> str:
        """Help."""
        raise InputError(name)

    assert surface._guard(command).__doc__ == "Help."
