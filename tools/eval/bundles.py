"""One exported bundle for each row, kept in the cache; made anew when anything that it is made of changes."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from foveate.pruning.registry import describe_method
from foveate.tools.cache import FORMAT_SOURCES, cache_folder, is_exported, sources_hash
from foveate.tools.demo import ADAPTERS, CHECKPOINT, checkpoint_hash
from foveate.tools.eval.rows import Row

# What every graph is made by. The methods' own files are found by their imports.
_SOURCES = ("export", *FORMAT_SOURCES)

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Made:
    """A row's bundle: its folder, and a key that changes with everything it was made of."""

    path: Path
    key: str


class NoAdapterError(Exception):
    """A trained method has no weights for the built-in model."""


def bundle_of(row: Row, progress: Progress) -> Made:
    """The row's bundle of the built-in model, fused layout; exported unless it is in the cache.

    Raises:
        NoAdapterError: as said.
        FoveateError: the export does not go.
    """
    adapters, (path, key) = adapters_of(row), place_of(row)
    if not is_exported(path):
        from foveate.export import export_model

        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"{path.name.removesuffix(key)}????????????"):
            shutil.rmtree(old)
        export_model(
            CHECKPOINT,
            path,
            plan=row.words,
            layouts=("fused",),
            adapters=adapters,
            progress=lambda what, done, total: progress(f"export {row.name}", done, total),
        )
    return Made(path, key)


def needs_export(row: Row) -> bool:
    """Whether the row's bundle is not in the cache, and could be."""
    try:
        return not is_exported(place_of(row)[0])
    except NoAdapterError:
        return False


def place_of(row: Row) -> tuple[Path, str]:
    """Where the row's bundle is or will be, and its key. Raises NoAdapterError."""
    key = _key(row, adapters_of(row))
    slug = re.sub(r"[^a-z0-9]+", "-", row.name)[:60].strip("-")
    return cache_folder() / "eval" / f"{slug}-{key}", key


def adapters_of(row: Row) -> tuple[Path, ...]:
    """Weights of the row's trained methods, as shipped with the built-in model. Raises NoAdapterError."""
    found = []
    for name in row.methods:
        if describe_method(name).kind == "trained":
            path = ADAPTERS / f"{name}.safetensors"
            if not path.is_file():
                raise NoAdapterError(
                    f"no adapter: {name} has no weights for the built-in model (foveate train)"
                )
            found.append(path)
    return tuple(found)


def _key(row: Row, adapters: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(repr((row.words, checkpoint_hash(), sources_hash(*_SOURCES))).encode())
    modules = [describe_method(name).module for name in row.methods]
    for file in sorted(_closure(["foveate.pruning.method", "foveate.pruning.plan", *modules])):
        digest.update(file.read_bytes())
    for path in adapters:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _closure(modules: list[str]) -> set[Path]:
    """Files of these modules and of all modules of `foveate.pruning` that they import."""
    files: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in files:
            spec = find_spec(name)
            if spec is not None and spec.origin is not None:
                files[name] = Path(spec.origin)
                waiting += _imports(files[name])
    return set(files.values())


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foveate.pruning."):
            yield str(node.module)
