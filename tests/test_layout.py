"""The repository keeps its shape: packages, import rules, import weight, wheel contents, file sizes."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parent.parent
FOLDERS = ("export", "pruning", "runtime", "tools")
MAX_LINES = 400

# What the files of a folder may import besides the standard library and their own package; `tools` anything.
# (Modules of ours are given with the depth that is allowed: export reads bundles, it never runs one.)
MAY_IMPORT = {
    "pruning": {"torch", "tomli", "foveate.runtime.errors"},  # tomli: what tomllib is from Python 3.11 on
    "export": {
        *("torch", "numpy", "onnx", "onnx_ir", "onnxscript", "ml_dtypes"),
        *("safetensors", "tokenizers", "transformers"),
        "foveate.pruning",
        *(
            f"foveate.runtime.{name}"
            for name in ("bundle", "bundle_writer", "errors", "integrity", "manifest")
        ),
        # Engines are built for the machine that runs them, for what its processor makes of pictures.
        *("PIL", "polygraphy", "tensorrt"),
        *(
            f"foveate.runtime.{name}"
            for name in ("cuda", "engines", "families", "files", "model", "processor", "tensorrt")
        ),
        *("foveate.runtime.videos", "foveate.runtime.visuals"),
    },
    "runtime": {
        *("numpy", "onnxruntime", "PIL", "pydantic", "tokenizers", "transformers"),
        *("cuda.bindings", "tensorrt"),  # inside functions only: tests/runtime/test_imports.py
    },
}
# Read by the command line and by the runtime's side of a plan, where torch is not installed.
STDLIB_ONLY = ("pruning/spec.py", "pruning/plan.py", "pruning/registry.py", "runtime/errors.py")


def _python_files(*folders: str) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


def _imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at any depth of its code, without `if TYPE_CHECKING` blocks."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _allowed(name: str, allowed: set[str]) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names or any(
        name == entry or name.startswith(f"{entry}.") for entry in allowed
    )


def _pyproject() -> dict[str, dict[str, object]]:
    loaded: dict[str, dict[str, object]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return loaded


def _run(code: str, where: Path) -> str:
    """Run code in a fresh interpreter in an empty folder; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_list_equals_the_folders() -> None:
    listed = _pyproject()["tool"]["setuptools"]["packages"]  # type: ignore[index]
    found = {
        "foveate." + ".".join(path.parent.relative_to(ROOT).parts)
        for path in _python_files(*FOLDERS)
        if path.name == "__init__.py"
    }
    assert set(listed) == found
    assert len(listed) == len(set(listed))


def test_no_python_file_stands_outside_a_package() -> None:
    loose = [path for path in _python_files(*FOLDERS) if not (path.parent / "__init__.py").is_file()]
    assert not loose, "setuptools would leave these out of the wheel"


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_import_rules(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {f"foveate.{folder}"}
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _python_files(folder)
        for name in _imports(path)
        if not _allowed(name, allowed)
    ]
    assert not broken


@pytest.mark.parametrize("name", STDLIB_ONLY)
def test_standard_library_only(name: str) -> None:
    path = ROOT / name
    ours = {"foveate." + entry.removesuffix(".py").replace("/", ".") for entry in STDLIB_ONLY} | {
        "foveate.pruning.spec"
    }
    broken = [found for found in _imports(path) if not _allowed(found, ours | {"foveate.pruning"})]
    assert not broken
    heavy = [
        found
        for found in _imports(path)
        if found.startswith("foveate.pruning.") and not _allowed(found, ours)
    ]
    assert heavy in ([], ["foveate.pruning.spec"]), heavy


def test_the_runtime_imports_neither_torch_nor_the_exporter(tmp_path: Path) -> None:
    names = [
        ".".join(("foveate", *path.relative_to(ROOT).with_suffix("").parts))
        for path in _python_files("runtime")
    ]
    loaded = _run(
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(*sys.modules)",
        tmp_path,
    ).split()
    heavy = {"torch", "onnx", "foveate.export", "foveate.pruning", "transformers", "tensorrt"}
    assert not heavy & set(loaded)


def test_import_of_the_runtime_is_light(tmp_path: Path) -> None:
    loaded = set(_run("import foveate.runtime, sys\nprint(*sys.modules)", tmp_path).split())
    assert not {"torch", "transformers", "onnxruntime", "numpy", "pydantic"} & loaded


def test_no_generic_module_names(tmp_path: Path) -> None:
    names = [
        ".".join(("foveate", *path.relative_to(ROOT).with_suffix("").parts))
        for path in _python_files(*FOLDERS)
    ]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(*sys.modules)"
    loaded = set(_run(code, tmp_path).split())
    assert set(names) <= loaded
    assert not set(FOLDERS) & loaded, "a bare folder name is a second copy of the package"


@pytest.mark.parametrize(
    "path", _python_files(*FOLDERS, "tests"), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; cut it where its subject changes"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in the wheel, built from a copy so that the working tree stays clean."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        output,
        source,
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(output.glob("foveate-*.whl"))) as archive:
        return archive.namelist()


def test_the_wheel_holds_every_module(wheel: list[str]) -> None:
    modules = {f"foveate/{path.relative_to(ROOT).as_posix()}" for path in _python_files(*FOLDERS)}
    assert not modules - set(wheel)
    assert {f"foveate/{folder}/py.typed" for folder in FOLDERS} <= set(wheel)


def test_the_wheel_holds_the_demo_model(wheel: list[str]) -> None:
    data = [
        path
        for name in ("checkpoint", "samples", "adapters")
        for path in (ROOT / "tools" / "demo_model" / name).glob("*")
    ]
    assert any(path.suffix == ".safetensors" for path in data), "the demo checkpoint is missing"
    assert {f"foveate/{path.relative_to(ROOT).as_posix()}" for path in data} <= set(wheel)
    assert sum(path.stat().st_size for path in data) <= 10e6


def test_the_wheel_installs_no_generic_name(wheel: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"foveate"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert "foveate/__init__.py" not in wheel, "foveate is a namespace package"
