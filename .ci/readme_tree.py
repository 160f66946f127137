"""Rewrites the file tree in README.md from the first lines of the files; `make format` runs it."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=^```tree\n).*?(?=^```)", re.MULTILINE | re.DOTALL)
FOLDERS = ("export", "pruning", "runtime", "tools")
WIDTH = 118
# What has no docstring of its own.
ABOUT = {
    "export/blocks/": "the layers that families are built of",
    "runtime/backends/": "one file per backend",
    "tools/parity/": "the parity ladder: reference, oracles, rungs, report",
    "tools/demo_model/": "the built-in model: scenes, training, checkpoint",
    "tests/": "mirrors the folders",
    "tests/doubles/": "stand-ins for CUDA and TensorRT that compute on the CPU",
    "tests/bindings/": "our TensorRT code against its real bindings",
    "docs/": "quickstart, concepts, methods, parity, one page per command, decisions",
    ".ci/run": "what CI runs: lint, tests, demo",
    "Makefile": "demo, test, lint; each sets up .venv by itself",
    "constraints.txt": "the exact versions that CI installs",
    "pyproject.toml": "packages, extras, tool settings",
}


def tree() -> str:
    """The lines of the block: every Python file of the four packages, then the rest by hand."""
    lines = [line for folder in FOLDERS for line in _folder(ROOT / folder, 0)]
    rest = [name for name in ABOUT if not name.startswith(FOLDERS)]
    return "\n".join([*lines, *(_line(name, 0, ABOUT[name]) for name in rest)]) + "\n"


def _folder(folder: Path, depth: int) -> list[str]:
    name = folder.relative_to(ROOT).as_posix() + "/"
    lines = [_line(f"{folder.name}/", depth, ABOUT.get(name) or _summary(folder / "__init__.py"))]
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and (path / "__init__.py").is_file():
            lines += _folder(path, depth + 1)
        elif path.suffix == ".py" and path.name != "__init__.py":
            lines.append(_line(path.name, depth + 1, _summary(path)))
    return lines


def _line(name: str, depth: int, about: str) -> str:
    text = f"{'  ' * depth}{name}"
    return f"{text:<28} {_shortened(about, WIDTH - 29)}"


def _shortened(text: str, width: int) -> str:
    """As many whole clauses as fit; if not even the first one does, as many words."""
    while len(text) > width and (clauses := re.split(r"(?=[:;,] )(?![^()]*\))", text))[1:]:
        text = "".join(clauses[:-1])
    return textwrap.shorten(text, width, placeholder=" …")


def _summary(path: Path) -> str:
    """The first sentence of a file's docstring, without markup and full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = docstring.partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[^.])\.(?: |$)", first)[0].replace("`", "")


def main() -> None:
    """Rewrite the block; with `--check` only say whether it is up to date."""
    old = README.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda _: tree(), old)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == old else "the file tree in README.md is out of date: run make format")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
