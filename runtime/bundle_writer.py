"""Writes a bundle whole or not at all.

Everything goes into a hidden sibling folder, `.<name>.partial-<pid>`. `finish` hashes the files, writes the
manifest last and renames the folder into place. A run that is killed leaves only the hidden folder, which has
no manifest, is never taken for a bundle, and is removed by the next run.

While it works, a writer holds the lock of `.<name>.lock` beside the target, so that two never write to one
place. The system frees the lock of a run that is killed; the empty file that it leaves is used again.
"""

from __future__ import annotations

import glob
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from foveate.runtime import integrity
from foveate.runtime.engines import FOLDER as ENGINES
from foveate.runtime.errors import ExportError, FoveateError, UsageError
from foveate.runtime.files import disk_is_full, flush, free_lock, mebibytes, size_of, take_lock
from foveate.runtime.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from foveate.runtime.bundle import Bundle


class BundleWriter:
    """Context manager for writing a bundle.

        with BundleWriter(Path("out/bundle")) as writer:
            write_graphs(writer.path / "onnx")
            bundle = writer.finish(manifest)

    `expected_bytes` is the size that the bundle will have, where known: too little free space is then
    reported before the work starts. A target that is a symbolic link stays one: what it points to is written.

    Raises:
        UsageError: when the target is no place for a folder, exists and `overwrite` is false, is not a
            bundle, or is being written to by another process. Looked at on entering and once more in
            `finish`, for something may have appeared meanwhile.
        ExportError: when the disk is full, or `finish` was not called.
    """

    def __init__(self, target: Path, *, overwrite: bool = False, expected_bytes: int = 0) -> None:
        self.target = _resolved(target)
        self.path = self.target.with_name(f".{self.target.name}.partial-{os.getpid()}")
        self._overwrite = overwrite
        self._expected = expected_bytes
        self._lock: BinaryIO | None = None
        self._finished = False

    def __enter__(self) -> BundleWriter:
        try:
            self._check_target()
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self._lock_path)
            self._clean_up()
            self._check_target()
            self._check_space()
            self.path.mkdir()
        except OSError as error:
            self._release()
            raise self._explain(error) from error
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        written = size_of(self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()
        if isinstance(error, FoveateError):
            return
        if error is not None and disk_is_full(error):
            raise self._full(written) from error
        if error is None and not self._finished:
            raise ExportError(f"the bundle {self.target} was not finished, so nothing was written")

    def finish(self, manifest: Manifest, progress: integrity.Progress | None = None) -> Bundle:
        """Hash everything in `path`, add the manifest, and move the folder to its place.

        Raises:
            ExportError: the disk is full, or the folder cannot be moved to its place.
            UsageError: something else has appeared in its place.
            ValueError: the manifest names a stage file that was not written.
        """
        from foveate.runtime.bundle import Bundle  # the two modules know each other

        names = integrity.list_files(self.path)
        files = integrity.hash_files(self.path, names, progress)
        complete = Manifest.model_validate(manifest.model_dump() | {"files": files})
        complete = complete.model_copy(update={"sha256": complete.digest()})
        (self.path / MANIFEST_NAME).write_text(complete.model_dump_json(indent=2), encoding="utf-8")
        # The stamp vouches for content by size and time, so the content has to be on the disk before it.
        for name in [*names, MANIFEST_NAME]:
            flush(self.path / name)
        integrity.write_stamp(self.path, names)
        self._check_target()
        try:
            self._move_into_place()
        except OSError as error:
            raise self._explain(error) from error
        self._finished = True
        return Bundle(self.target, complete)

    def _move_into_place(self) -> None:
        """Rename; an old bundle steps aside first, so that at no time there is a mixture of both.

        Nothing is lost to a folder that appears at the last moment: `rmdir` and `rename` refuse a full one.
        """
        old = self.target.with_name(f".{self.target.name}.old-{os.getpid()}")
        replacing = (self.target / MANIFEST_NAME).is_file()
        if replacing:
            self.target.rename(old)
        elif self.target.exists():
            self.target.rmdir()
        try:
            self.path.rename(self.target)
        except OSError:
            if replacing:
                with suppress(OSError):  # the next run tries again
                    old.rename(self.target)
            raise
        if replacing:
            # Engines say themselves what they were built of: `foveate build` renews what changed.
            with suppress(OSError):
                (old / ENGINES).rename(self.target / ENGINES)
        flush(self.target.parent)
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

    @property
    def _lock_path(self) -> Path:
        return self.target.with_name(f".{self.target.name}.lock")

    def _release(self) -> None:
        free_lock(self._lock, self._lock_path)
        self._lock = None

    def _clean_up(self) -> None:
        """Remove what broken-off runs left; put back an old bundle that a kill caught between two renames."""
        name = glob.escape(self.target.name)
        for partial in self.target.parent.glob(f".{name}.partial-*"):
            shutil.rmtree(partial, ignore_errors=True)
        for old in self.target.parent.glob(f".{name}.old-*"):
            if (self.target / MANIFEST_NAME).is_file():
                shutil.rmtree(old, ignore_errors=True)
            else:
                if self.target.exists():
                    self.target.rmdir()
                old.rename(self.target)

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if self._expected > free:
            raise self._full(0)

    def _explain(self, error: OSError) -> ExportError:
        if disk_is_full(error):
            return self._full(0)
        mend = "choose another folder with -o"
        return ExportError(f"cannot write to {self.target.parent}: {error}", mend=mend)

    def _full(self, written: int) -> ExportError:
        free = shutil.disk_usage(self.target.parent).free
        needed = f"{'' if self._expected else 'more than '}{mebibytes(max(self._expected, written))}"
        return ExportError(
            f"there is no space left for the bundle {self.target}; nothing of it was kept",
            found=f"{mebibytes(written)} written, {mebibytes(free)} free after removing them"
            if written
            else mebibytes(free),
            wanted=f"{needed} free",
            mend="free some space, or choose another folder with -o, and run the same command again",
        )


def _resolved(target: Path) -> Path:
    """The place itself, where `target` is a symbolic link; with a name, beside which others can be put."""
    try:
        found = Path(os.path.realpath(target))
    except ValueError as error:  # a zero character
        raise UsageError(f"{str(target)!r} cannot be the name of a folder", found=str(error)) from error
    if not found.name:
        raise UsageError(f"{found} cannot be a bundle", wanted="a folder of its own", mend="-o DIR/bundle")
    if found.is_symlink():
        raise UsageError(f"{target} is a symbolic link to itself", mend="choose another folder with -o")
    return found


def _take_lock(path: Path) -> BinaryIO | None:
    try:
        return take_lock(path)
    except BlockingIOError as error:
        target = path.with_name(path.name.removeprefix(".").removesuffix(".lock"))
        mend = "wait until it is finished, or choose another folder"
        raise UsageError(f"another export is writing to {target}", mend=mend) from error
