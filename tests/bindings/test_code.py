"""Everything that our TensorRT code uses exists in both lines of the real bindings: names, members, keywords.

What it uses is read off the modules themselves (`scan`). Types are mypy's part: `make lint` checks the same modules
against the stubs of the newest bindings, and `test_the_types_fit_the_older_bindings` against the older ones.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scan
import stubs
import surface
import versions

ALL = [each.version for each in versions.ALL]
MODULES = scan.modules()
names = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(scan.ROOT).as_posix())
lines = pytest.mark.parametrize("version", ALL)


def _resolve(chain: str, found: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of `ILogger.Severity.ERROR`; None if a part of it does not exist."""
    parts = chain.split(".")
    entry = found.get(parts[0])
    for index, part in enumerate(parts[1:], 1):
        if entry is None:
            return None
        if entry["kind"] == "enum":
            extra = {"name", "value", "__members__"}
            return entry if part in entry["members"] or part in extra else None
        if entry["kind"] != "class":
            return {"kind": "value"}  # an attribute of a plain value is the value's
        entry = surface.members(found, parts[0]).get(part) if index == 1 else entry["members"].get(part)
    return entry


def _owners(member: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of a member in all classes that have it."""
    classes = [name for name, entry in found.items() if entry["kind"] == "class"]
    every = (surface.members(found, name).get(member) for name in classes)
    return [entry for entry in every if entry is not None]


def _known(surfaces: dict[str, Any]) -> set[str]:
    """Names of members of any class in any version, and of the packages."""
    known: set[str] = set()
    for found in surfaces.values():
        known |= set(found)
        for entry in found.values():
            known |= set(entry["members"]) if entry["kind"] == "class" else set()
    return known


def test_the_modules_are_found() -> None:
    found = {path.relative_to(scan.ROOT).as_posix() for path in MODULES}
    assert {"runtime/backends/tensorrt.py", "export/engines/builder.py"} <= found


@names
@lines
def test_every_name_exists(path: Path, version: str, surfaces: dict[str, Any]) -> None:
    uses, found = scan.scan(path), surfaces[version]
    missing = {
        chain: where
        for chain, where in uses.chains.items()
        if chain != "__version__" and _resolve(chain, found) is None and not _guarded(chain, uses)
    }
    assert not missing, f"not in {version}: {missing}"


def _guarded(chain: str, uses: scan.Uses) -> bool:
    return any(part in uses.guarded for part in chain.split("."))


@names
@lines
def test_every_member_exists(path: Path, version: str, surfaces: dict[str, Any]) -> None:
    """A member of one line only has to be asked for with hasattr or getattr."""
    uses, found, known = scan.scan(path), surfaces[version], _known(surfaces)
    missing = {
        member: where
        for member, where in uses.members.items()
        if member in known and not _owners(member, found) and member not in found
        if member not in uses.guarded
    }
    assert not missing, f"not in {version}: {missing}"


@names
@lines
def test_every_keyword_exists(path: Path, version: str, surfaces: dict[str, Any]) -> None:
    uses, found = scan.scan(path), surfaces[version]
    wrong = {}
    for (member, name), where in uses.keywords.items():
        allowed = [surface.keywords(entry) for entry in _owners(member, found)]
        if allowed and not any(name in each for each in allowed):
            wrong[member, name] = where
    assert not wrong, f"not in {version}: {wrong}"


@names
@lines
def test_what_tensorrt_calls_has_its_arguments(path: Path, version: str, surfaces: dict[str, Any]) -> None:
    """Methods that override TensorRT's take what it gives; its base's __init__ runs."""
    uses, found = scan.scan(path), surfaces[version]
    for base, methods in uses.bases.items():
        assert base in found, f"{base} is not in {version}"
        real = surface.members(found, base)
        for name, arguments, line in methods:
            signatures = real.get(name, {}).get("signatures", [])
            allowed = [[each["name"] for each in signature["parameters"]] for signature in signatures]
            if allowed and name != "__init__":
                assert len(arguments) in map(len, allowed), (
                    f"{path}:{line} {base}.{name}{arguments}: {allowed}"
                )
        if any(name == "__init__" for name, _, _ in methods):
            calls = {each.rpartition(".")[0].rpartition(".")[2] for each in uses.initialised}
            assert base in calls, f"{base}.__init__ is not called by what derives from it"


@names
def test_no_answer_is_thrown_away(path: Path, surfaces: dict[str, Any]) -> None:
    """Most of TensorRT fails by returning False: a call whose bool nobody looks at hides it."""
    found = surfaces[ALL[0]]
    hidden = {}
    for member, where in scan.scan(path).dropped.items():
        returns = {
            each["returns"] for entry in _owners(member, found) for each in entry.get("signatures", [])
        }
        if returns == {"bool"}:
            hidden[member] = where
    assert not hidden


@pytest.mark.parametrize(
    "path", [path for path in MODULES if list(scan.imported_from_polygraphy(path))], ids=str
)
def test_polygraphy_has_what_is_used_of_it(path: Path) -> None:
    for module, name, here in scan.imported_from_polygraphy(path):
        thing = getattr(importlib.import_module(module), name)
        kinds = thing.__mro__ if isinstance(thing, type) else ()
        functions = [kind.__init__ for kind in kinds if "__init__" in vars(kind)] or [thing]
        if not callable(thing):
            continue
        allowed = {each for function in functions for each in inspect.signature(function).parameters}
        given = {each for each, _ in scan.keywords_given(path, here)}
        assert given <= allowed, f"{name} has no {sorted(given - allowed)}"


def test_the_stubs_are_current(surfaces: dict[str, Any]) -> None:
    kept = scan.ROOT / ".ci" / "typing" / "tensorrt" / "__init__.pyi"
    fresh = stubs.write_stubs(surfaces[ALL[0]], ALL[0])
    assert kept.read_text() == fresh, "run: python .ci/tensorrt_stubs.py"


@pytest.mark.slow
def test_the_types_fit_the_older_bindings(surfaces: dict[str, Any], tmp_path: Path) -> None:
    """mypy --strict on the modules, with the stubs of the older line in the place of the newest's."""
    typing = tmp_path / "typing"
    typing.mkdir()
    (typing / "foveate").symlink_to(scan.ROOT / ".ci" / "typing" / "foveate")
    (typing / "tensorrt").mkdir()
    (typing / "tensorrt" / "__init__.pyi").write_text(stubs.write_stubs(surfaces[ALL[1]], ALL[1]))
    config = (scan.ROOT / "pyproject.toml").read_text()
    config = config.replace('mypy_path = "$MYPY_CONFIG_FILE_DIR/.ci/typing"', f'mypy_path = "{typing}"')
    (tmp_path / "pyproject.toml").write_text(config)
    parts = [".".join(("foveate", *path.relative_to(scan.ROOT).with_suffix("").parts)) for path in MODULES]
    modules = [flag for part in parts for flag in ("-m", part.removesuffix(".__init__"))]
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "pyproject.toml"), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scan.ROOT)
    assert done.returncode == 0, done.stdout[-4000:]
