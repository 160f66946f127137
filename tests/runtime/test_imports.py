"""The runtime starts light and never needs torch. Each test looks at a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """
import sys
import foveate.runtime, foveate.runtime.errors, foveate.runtime.options
heavy = ("torch", "transformers", "onnxruntime", "onnx", "pydantic", "numpy", "PIL", "tokenizers")
print([name for name in heavy if name in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_opening_a_bundle_needs_neither_transformers_nor_onnxruntime() -> None:
    code = """
import sys
from foveate.runtime import Bundle, BundleWriter, Pipeline, load, Chat
heavy = ("torch", "transformers", "onnxruntime", "onnx", "foveate.export", "foveate.pruning")
print([name for name in heavy if name in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_gpus_are_left_alone_until_a_backend_is_made() -> None:
    """Also by the files that use them."""
    code = """
import importlib, pkgutil, sys
import foveate.runtime.backends, foveate.runtime.cuda
for package in (foveate.runtime.backends, foveate.runtime.cuda):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
print([name for name in ("cuda", "cuda.bindings", "tensorrt", "onnxruntime") if name in sys.modules])
"""
    assert python(code).strip() == "[]"


NO_TORCH = """
import sys
from importlib.abc import MetaPathFinder

BLOCKED = ("torch", "torchvision", "foveate.export", "foveate.pruning", "onnx", "safetensors")
# None is what Python writes for a module that does not exist: `find_spec` gives None as well, so that
# transformers sees an environment without torch. The finder catches anything else, submodules included.
for name in BLOCKED:
    sys.modules[name] = None

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in BLOCKED):
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
import numpy as np
from foveate.runtime import GenerateOptions, load
for layout in ("fused", "segmented"):
    pipeline = load(sys.argv[1], layout=layout, threads=1)
    image = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    chat = pipeline.chat()
    options = GenerateOptions(max_new_tokens=5, keep_ratio=0.4)
    print(chat.send("What is this?", [image], options).token_ids, chat.send("And?").report.cache_reused)
assert all(sys.modules.get(name) is None for name in BLOCKED)
"""


def test_a_whole_run_without_torch(bundles: dict[str, Path]) -> None:
    fused, segmented = python(NO_TORCH, str(bundles["pruned"])).splitlines()
    assert fused == segmented
    assert fused.endswith("True")


@pytest.mark.parametrize(("package", "names"), [("onnxruntime", "foveate"), ("transformers", "foveate")])
def test_missing_package_is_named(bundles: dict[str, Path], package: str, names: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from foveate.runtime import load
from foveate.runtime.errors import MissingDependencyError
try:
    load(sys.argv[1])
except MissingDependencyError as error:
    print(error)
"""
    said = python(code, str(bundles["plain"]))
    assert f"'{package}' is not installed" in said
    assert f'pip install "{names}"' in said


def test_public_names_resolve() -> None:
    code = """
import foveate.runtime
assert sorted(foveate.runtime.__all__) == sorted(foveate.runtime._HOME) == dir(foveate.runtime)
print(all(getattr(foveate.runtime, name) is not None for name in foveate.runtime.__all__))
try:
    foveate.runtime.nothing
except AttributeError as error:
    print(error)
"""
    said = python(code)
    assert said.splitlines()[0] == "True"
    assert "has no attribute 'nothing'" in said
