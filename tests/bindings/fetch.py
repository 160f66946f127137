"""Brings the real bindings here: pip fetches the wheel for this interpreter, over an empty library.

    fetch(NEWEST, cache) -> folder to import from      describe(NEWEST, cache) -> every name that it has

The import happens in a child process, because two TensorRTs do not fit into one, and because nothing of
them may be called here: only names, signatures and members are read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from dummy_library import write_library
from versions import Bindings

HERE = Path(__file__).parent
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
# What the bindings take from the libraries (both lines): undefined symbols of tensorrt.so.
SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry"),
    *("getPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins"),
)


class UnavailableError(RuntimeError):
    """The bindings cannot be had here, so nothing was checked against them."""


def fetch(bindings: Bindings, cache: Path) -> Path:
    """The folder in `cache` that holds the unpacked wheel and, in lib/, the empty libraries.

    Raises:
        UnavailableError: pip cannot get the wheel, with what pip says.
    """
    folder = cache / f"{bindings.package}-{bindings.version}-{sys.implementation.cache_tag}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "lib").is_dir():
            _unpack(_download(bindings, folder / "wheel"), folder)
            (folder / "lib.part").mkdir(exist_ok=True)
            for name in LIBRARIES:
                write_library(folder / "lib.part" / f"lib{name}.so.{bindings.line}", SYMBOLS)
            (folder / "lib.part").rename(folder / "lib")
    return folder


def _download(bindings: Bindings, folder: Path) -> Path:
    wanted = f"{bindings.package}=={bindings.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise UnavailableError(
            f"cannot fetch {wanted} for {sys.implementation.cache_tag}, so our TensorRT code is "
            f"not checked against it. It needs a package index that holds this wheel. pip says:\n{said}"
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def run(bindings: Bindings, cache: Path, code: str) -> str:
    """What a child process prints that runs `code` where `tensorrt_bindings` can be imported."""
    folder = fetch(bindings, cache)
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(HERE)]), "LD_LIBRARY_PATH": str(folder / "lib")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | paths, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(
            f"{bindings.package} {bindings.version} cannot be imported:\n{done.stderr[-2000:]}"
        )
    return done.stdout


def describe(bindings: Bindings, cache: Path) -> dict[str, Any]:
    """Every public name of the bindings as `surface.describe` puts it; kept in the cache beside the wheel."""
    code = "import json, surface, tensorrt_bindings\nprint(json.dumps(surface.describe(tensorrt_bindings)))"
    reader = hashlib.sha256((HERE / "surface.py").read_bytes()).hexdigest()[:12]
    kept = fetch(bindings, cache) / f"surface-{reader}.json"
    if not kept.is_file():
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(run(bindings, cache, code))
        part.rename(kept)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found
