"""Writes a bundle whole or not at all.

Everything goes into a hidden sibling folder, `.<name>.partial-<pid>`. `finish` hashes the files, writes the
manifest last and renames the folder into place. A run that is killed leaves only the hidden folder, which has
no manifest, is never taken for a bundle, and is removed by the next run.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from foveate.runtime import integrity
from foveate.runtime.errors import ExportError, FoveateError, UsageError
from foveate.runtime.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from foveate.runtime.bundle import Bundle

try:
    import fcntl
except ImportError:  # not on Windows: there a partial folder counts as abandoned
    fcntl = None  # type: ignore[assignment]

# EFBIG: a size limit of the process or the file system, which for us is the same as a full disk.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class BundleWriter:
    """Context manager for writing a bundle.

        with BundleWriter(Path("out/bundle")) as writer:
            write_graphs(writer.path / "onnx")
            bundle = writer.finish(manifest)

    `expected_bytes` is the size that the bundle will have, where known: too little free space is then
    reported before the work starts.

    Raises:
        UsageError: on entering, when the target exists and `overwrite` is false, or is not a bundle.
        ExportError: when the disk is full, or `finish` was not called.
    """

    def __init__(self, target: Path, *, overwrite: bool = False, expected_bytes: int = 0) -> None:
        self.target = Path(target).absolute()
        self.path = self.target.with_name(f".{self.target.name}.partial-{os.getpid()}")
        self._overwrite = overwrite
        self._expected = expected_bytes
        self._lock: BinaryIO | None = None
        self._finished = False

    def __enter__(self) -> BundleWriter:
        self._check_target()
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._clean_up()
            self._check_space()
            self.path.mkdir()
            self._lock = _hold_lock(self.path)
        except OSError as error:
            raise self._explain(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        written = _size(self.path)
        if self._lock is not None:
            self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)
        if isinstance(error, FoveateError):
            return
        if error is not None and _disk_is_full(error):
            raise self._full(written) from error
        if error is None and not self._finished:
            raise ExportError(f"the bundle {self.target} was not finished, so nothing was written")

    def finish(self, manifest: Manifest, progress: integrity.Progress | None = None) -> Bundle:
        """Hash everything in `path`, add the manifest, and move the folder to its place.

        Raises:
            ExportError: the disk is full.
            ValueError: the manifest names a stage file that was not written.
        """
        from foveate.runtime.bundle import Bundle  # the two modules know each other

        names = integrity.list_files(self.path)
        files = integrity.hash_files(self.path, names, progress)
        complete = Manifest.model_validate(manifest.model_dump() | {"files": files})
        (self.path / MANIFEST_NAME).write_text(complete.model_dump_json(indent=2), encoding="utf-8")
        # The stamp vouches for content by size and time, so the content has to be on the disk before it.
        for name in [*names, MANIFEST_NAME]:
            _flush(self.path / name)
        integrity.write_stamp(self.path, names)
        (self.path / integrity.LOCK_NAME).unlink(missing_ok=True)
        self._move_into_place()
        self._finished = True
        return Bundle(self.target, complete)

    def _move_into_place(self) -> None:
        """Rename; an old bundle steps aside first, so that at no time there is a mixture of both."""
        old = self.target.with_name(f".{self.target.name}.old-{os.getpid()}")
        if self.target.exists():
            self.target.rename(old)
        self.path.rename(self.target)
        _flush(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _check_target(self) -> None:
        if not self.target.exists():
            return
        if not self.target.is_dir():
            raise UsageError(f"{self.target} is a file", wanted="a folder to write the bundle to")
        if not any(self.target.iterdir()):
            return
        if not (self.target / MANIFEST_NAME).is_file():
            # Never delete what we did not write, whatever the flag says.
            raise UsageError(f"{self.target} holds other files, not a bundle", mend="choose another folder")
        if not self._overwrite:
            raise UsageError(f"{self.target} exists", mend="choose another folder, or add --overwrite")

    def _clean_up(self) -> None:
        """Remove what broken-off runs left; put back an old bundle that a kill caught between two renames."""
        for partial in self.target.parent.glob(f".{self.target.name}.partial-*"):
            if not _is_locked(partial):
                shutil.rmtree(partial, ignore_errors=True)
        for old in self.target.parent.glob(f".{self.target.name}.old-*"):
            if self.target.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(self.target)
                self._check_target()

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if self._expected > free:
            raise self._full(0)

    def _explain(self, error: OSError) -> ExportError:
        if _disk_is_full(error):
            return self._full(0)
        mend = "choose another folder with -o"
        return ExportError(f"cannot write to {self.target.parent}: {error}", mend=mend)

    def _full(self, written: int) -> ExportError:
        free = shutil.disk_usage(self.target.parent).free
        needed = f"{'' if self._expected else 'more than '}{_mib(max(self._expected, written))}"
        return ExportError(
            f"there is no space left for the bundle {self.target}; nothing of it was kept",
            found=f"{_mib(written)} written, {_mib(free)} free after removing them"
            if written
            else _mib(free),
            wanted=f"{needed} free",
            mend="free some space, or choose another folder with -o, and run the same command again",
        )


def _hold_lock(folder: Path) -> BinaryIO:
    """An open file whose lock says that the folder is in use; the system frees it on a kill."""
    lock = (folder / integrity.LOCK_NAME).open("wb")
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _is_locked(folder: Path) -> bool:
    """Whether a live process holds the folder. Process ids will not do: containers reuse them."""
    try:
        with (folder / integrity.LOCK_NAME).open("rb") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_is_full(error: BaseException) -> bool:
    """Looks through the chain of causes, for libraries wrap the system's error in their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
