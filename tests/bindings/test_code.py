"""Everything that our TensorRT code uses exists in both lines of the real bindings: names, members, keywords.

What it uses is read off the modules themselves (`scan`). Types are mypy's part: `make lint` checks the same
modules against the stubs of the newest bindings, `test_the_types_fit_the_older_bindings` against those of
the older ones.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import checks
import pytest
import scan
import stubs
import versions

ALL = [each.version for each in versions.ALL]
MODULES = scan.modules()
LIBRARY = """
import tensorrt as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, msg):
        ...
"""
# What a module may do, and what a check has to say of it. The first of a pair is refused, the second passes.
SNIPPETS = {
    "names": ("trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "trt.BuilderFlag.TF32"),
    "names of classes": ("trt.IInt8EntropyCalibrator2()", "trt.Runtime(log)"),
    "names in classes": ("trt.ILogger.Severity.FATAL", "trt.ILogger.Severity.ERROR"),
    "members": ("engine.device_memory_size", "engine.device_memory_size_v2"),
    "members behind an underscore": (
        "self._context.all_shape_inputs_specified",
        "self._context.infer_shapes()",
    ),
    "texts": ('KINDS = {"FLOAT16": "float16"}', 'KINDS = {"HALF": "float16"}'),
    "keywords": (
        "x = config.set_timing_cache(cache, ignore=True)",
        "x = config.set_timing_cache(cache, ignore_mismatch=True)",
    ),
    "overrides": (
        LIBRARY.replace("severity, msg", "severity"),
        LIBRARY,
    ),
    "overrides without the base": (LIBRARY.replace("trt.ILogger.__init__(self)", "pass"), LIBRARY),
    "dropped": ("context.execute_async_v3(stream)", "done = context.execute_async_v3(stream)"),
}
modules = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(scan.ROOT).as_posix())


@pytest.fixture(scope="session")
def real(surfaces: dict[str, Any]) -> dict[str, checks.Real]:
    return {version: checks.Real(found) for version, found in surfaces.items()}


@cache
def _uses(path: Path) -> scan.Uses:
    return scan.scan(path)


def _wrong(uses: scan.Uses, real: dict[str, checks.Real], version: str) -> dict[str, Any]:
    """All that the checks say of a module, by check."""
    known = {name for each in real.values() for name in (*each.owners, *each.found)}
    this = real[version]
    found = {
        "names": checks.names(uses, this),
        "members": checks.members(uses, this, known),
        "texts": checks.texts(uses, this),
        "keywords": checks.keywords(uses, this),
        "overrides": checks.overrides(uses, this),
        "dropped": checks.dropped(uses, this),
    }
    return {name: wrong for name, wrong in found.items() if wrong}


def test_the_modules_are_found() -> None:
    found = {path.relative_to(scan.ROOT).as_posix() for path in MODULES}
    assert {"runtime/backends/tensorrt.py", "export/engines/builder.py"} <= found


@modules
@pytest.mark.parametrize("version", ALL)
def test_what_a_module_uses_exists(path: Path, version: str, real: dict[str, checks.Real]) -> None:
    assert not _wrong(_uses(path), real, version), f"{path.name} does not fit TensorRT {version}"


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_checks_find_what_is_wrong(name: str, tmp_path: Path, real: dict[str, checks.Real]) -> None:
    for text, expected in zip(SNIPPETS[name], ([name.split()[0]], []), strict=True):
        path = tmp_path / "module.py"
        path.write_text(text)
        uses = scan.scan(path, tmp_path)
        assert list(_wrong(uses, real, ALL[0])) == expected, text


def test_what_only_one_line_has_is_asked_for(tmp_path: Path, real: dict[str, checks.Real]) -> None:
    path = tmp_path / "module.py"
    path.write_text('kind = trt.CausalMaskKind.LOWER_RIGHT if hasattr(trt, "CausalMaskKind") else None')
    assert not _wrong(scan.scan(path, tmp_path), real, ALL[1])
    path.write_text("kind = trt.CausalMaskKind.LOWER_RIGHT")
    assert list(_wrong(scan.scan(path, tmp_path), real, ALL[1])) == ["names"]


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if list(scan.imported_from_polygraphy(path))],
    ids=lambda path: path.relative_to(scan.ROOT).as_posix(),
)
def test_polygraphy_has_what_is_used_of_it(path: Path) -> None:
    for module, name, here in scan.imported_from_polygraphy(path):
        thing = getattr(importlib.import_module(module), name)
        kinds = thing.__mro__ if isinstance(thing, type) else ()
        functions = [kind.__init__ for kind in kinds if "__init__" in vars(kind)] or [thing]
        if callable(thing):
            allowed = {each for function in functions for each in inspect.signature(function).parameters}
            given = {each for each, _ in scan.keywords_given(path, here)}
            assert given <= allowed, f"{name} has no {sorted(given - allowed)}"


def test_the_stubs_are_current(surfaces: dict[str, Any]) -> None:
    kept = scan.ROOT / ".ci" / "typing" / "tensorrt" / "__init__.pyi"
    assert kept.read_text() == stubs.write_stubs(surfaces[ALL[0]], ALL[0]), "python .ci/tensorrt_stubs.py"


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
    options = ["--config-file", str(tmp_path / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mypy", *options, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scan.ROOT)
    assert done.returncode == 0, done.stdout[-4000:]
