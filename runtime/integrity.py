"""Whether the files of a bundle are the ones that were exported: sizes, hashes and the fast path.

Hashing the weights of a large model takes a minute, so a successful check leaves a stamp, `.verified`: size
and modification time of each file, and the hash of the manifest that they were checked against. While the
stamp fits, `fast` skips the hashing. The stamp guards against accidents (a copy that broke off, a file edited
by hand); somebody who restores size and time after a change is only caught by `full`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from foveate.runtime.manifest import MANIFEST_NAME, FileRecord

STAMP_NAME = ".verified"
PARITY_NAME = "parity.json"
# Not part of the hashed content: written later, or describing the content itself.
UNHASHED = frozenset({MANIFEST_NAME, STAMP_NAME, PARITY_NAME})
# What is loaded from: a file that does not belong there may change what a bundle does.
_LOADED = ("onnx", "processor")
_CHUNK = 1 << 22

# Called with (bytes hashed so far, bytes in all).
Progress = Callable[[int, int], None]


def list_files(folder: Path) -> list[str]:
    """Relative paths, with forward slashes, of all files that belong to the hashed content, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if path not in UNHASHED)


def hash_files(folder: Path, names: list[str], progress: Progress | None = None) -> dict[str, FileRecord]:
    """Size and sha256 of each of the named files."""
    total = sum((folder / name).stat().st_size for name in names)
    records, done = {}, 0
    for name in names:
        digest, start = hashlib.sha256(), done
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        records[name] = FileRecord(bytes=done - start, sha256=digest.hexdigest())
    return records


def strangers(folder: Path, wanted: Collection[str]) -> list[str]:
    """Files beside the graphs and the processor's that are not `wanted`; hidden ones are never loaded."""
    names = [f"{part}/{name}" for part in _LOADED for name in list_files(folder / part)]
    return [n for n in names if n not in wanted and not any(p.startswith(".") for p in n.split("/"))]


def differences(
    folder: Path, wanted: Mapping[str, FileRecord], progress: Progress | None = None
) -> list[str]:
    """One phrase for each file that is missing or is not the one in `wanted`; sizes come before hashes."""
    problems = []
    for name, record in wanted.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != record.bytes:
            problems.append(f"{name} has {path.stat().st_size:,} bytes instead of {record.bytes:,}")
    if problems:
        return problems
    found = hash_files(folder, list(wanted), progress)
    return [
        f"{name} has other content (sha256 {found[name].sha256[:12]}… instead of {record.sha256[:12]}…)"
        for name, record in wanted.items()
        if found[name].sha256 != record.sha256
    ]


def write_stamp(folder: Path, names: list[str]) -> None:
    """Remember that the named files were just found right. A read-only folder goes without."""
    with suppress(OSError):
        temporary = folder / f"{STAMP_NAME}.{os.getpid()}"
        temporary.write_text(json.dumps(_stamp(folder, names)))
        temporary.replace(folder / STAMP_NAME)


def stamp_fits(folder: Path, names: list[str]) -> bool:
    """Whether size and time of each file, and the manifest, are those of the last successful check."""
    try:
        return bool(json.loads((folder / STAMP_NAME).read_text()) == _stamp(folder, names))
    except (OSError, ValueError):
        return False


def _stamp(folder: Path, names: list[str]) -> dict[str, object]:
    stats = {name: (folder / name).stat() for name in names}
    return {
        "manifest": hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest(),
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
