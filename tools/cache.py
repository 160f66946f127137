"""Where exported bundles are kept between commands, and what their names are made of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_ROOT = Path(__file__).parent.parent
FORMAT_SOURCES = ("runtime/manifest.py", "runtime/bundle_writer.py")
"""What a bundle's layout on the disk is made by."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/foveate`, or the platform's usual cache folder."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "foveate"
    if os.name == "nt" and (base := os.environ.get("LOCALAPPDATA")):
        return Path(base) / "foveate" / "cache"
    return Path.home() / ".cache" / "foveate"


def sources_hash(*places: str) -> str:
    """sha256 of the repository's Python files at some places (files or folders)."""
    digest = hashlib.sha256()
    for place in places:
        path = _ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def exporter_hash() -> str:
    """Changes with all that turns a checkpoint into a bundle, so that a cached one is never stale."""
    return sources_hash("export", "pruning", *FORMAT_SOURCES)


def cached_bundle(kind: str, *content: object) -> Path:
    """Where a bundle made of `content` (anything with a `repr`) is kept; the exporter is part of its name."""
    key = hashlib.sha256(repr((content, exporter_hash())).encode()).hexdigest()[:12]
    return cache_folder() / f"{kind}-{key}"


def is_exported(path: Path) -> bool:
    """Whether a finished bundle is there."""
    return (path / "manifest.json").is_file()
