"""What the documents say is so: links lead somewhere, examples parse, every option has its place."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from foveate.runtime import errors
from foveate.tools.cli import main as surface

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = ROOT / "docs" / "commands"
FOLDERS = ("export", "pruning", "runtime", "tools")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _click() -> Any:
    return typer.main.get_command(surface.build_app())


def _parse(words: list[str]) -> None:
    """Parse the words of a command line as typer does, without running anything."""
    verb, *rest = words
    commands = _click().commands
    assert verb in commands, f"no command {verb}"
    commands[verb].make_context(verb, rest)


def _command_lines(text: str) -> list[list[str]]:
    """The `foveate ...` lines in the shell blocks of a page, without comments and what is piped into them."""
    lines = [
        line for kind, body in FENCE.findall(text) if kind in ("bash", "sh") for line in body.splitlines()
    ]
    return [
        shlex.split(part, comments=True)
        for line in lines
        for part in line.split("|")
        if part.strip()[:8] == "foveate "
    ]


def _anchors(text: str) -> set[str]:
    """GitHub's names of the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", text)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{_name(page)}: {target}"
        if anchor:
            assert anchor in _anchors(found.read_text(encoding="utf-8")), f"{_name(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_shell_examples_parse(page: Path) -> None:
    for words in _command_lines(page.read_text(encoding="utf-8")):
        _parse(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_examples_compile(page: Path) -> None:
    for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            ast.parse(body)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("verb", surface.VERBS)
def test_help_examples_parse(verb: str) -> None:
    module = __import__(f"foveate.tools.cli.{verb}", fromlist=["EXAMPLES"])
    for line, meaning in module.EXAMPLES:
        words = shlex.split(line)
        assert words[:2] == ["foveate", verb]
        assert meaning
        _parse(words[1:])


def test_a_wrong_example_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        _parse(["run", "bundle", "--keepratio", "0.3"])


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    assert {page.stem for page in COMMANDS.glob("*.md")} == set(surface.VERBS)


@pytest.mark.parametrize("verb", surface.VERBS)
def test_pages_list_exactly_the_options(verb: str) -> None:
    page = (COMMANDS / f"{verb}.md").read_text(encoding="utf-8")
    command = _click().commands[verb]
    options = {word for each in command.params for word in each.opts if word.startswith("--")}
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {word for row in rows for word in re.findall(r"`(--[\w-]+)`", row)} == options - {"--help"}


def test_every_exit_code_is_explained() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FoveateError)
    ]
    codes = {kind.exit_code for kind in kinds} | {surface.INTERRUPTED}
    table = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for code in codes - {1}:
        assert f"| {code} |" in table
        assert f"{code} " in surface.EPILOG


def _tree(text: str) -> dict[str, str]:
    """The file tree of a page, as path -> what stands beside it."""
    block = next(body for kind, body in FENCE.findall(text) if kind == "tree")
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in block.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, about = line.strip().partition(" ")
        parents[depth:] = [name.rstrip("/")]
        found["/".join(parents) + ("/" if name.endswith("/") else "")] = about.strip()
    return found


def test_readme_tree_equals_the_disk() -> None:
    listed = _tree((ROOT / "README.md").read_text(encoding="utf-8"))
    for folder in FOLDERS:
        on_disk = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*.py")
            if path.name != "__init__.py" and "__pycache__" not in path.parts
        }
        in_tree = {path for path in listed if path.startswith(f"{folder}/") and path.endswith(".py")}
        assert in_tree == on_disk
    for path, about in listed.items():
        assert (ROOT / path).exists(), path
        assert about, f"{path} has no line"


def test_the_page_of_families_says_what_their_sources_say() -> None:
    words = [sys.executable, str(ROOT / ".ci" / "families_page.py"), "--check"]
    subprocess.run(words, check=True, timeout=60)
