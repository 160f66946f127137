"""Whatever happens while a bundle is written, nothing half-written opens, and the next run succeeds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import make
import pytest

from foveate.runtime.bundle import Bundle, BundleWriter
from foveate.runtime.errors import BundleError, ExportError, UsageError

HERE = Path(__file__).parent


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def break_off(target: Path, *, overwrite: bool = False) -> None:
    with BundleWriter(target, overwrite=overwrite) as writer:
        make.write_files(writer.path)
        raise RuntimeError("tracing broke")


def finish_without_a_stage(target: Path) -> None:
    with BundleWriter(target) as writer:
        make.write_files(writer.path)
        (writer.path / "onnx" / "vision.onnx").unlink()
        writer.finish(make.manifest())


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="tracing"):
        break_off(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExportError, match="not finished"), BundleWriter(tmp_path / "bundle"):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no entry under files"):
        finish_without_a_stage(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_existing_targets(tmp_path: Path) -> None:
    first = make.bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="--overwrite"):
        make.bundle(tmp_path / "bundle")
    assert Bundle.open(first.path, check="full") == first
    (first.path / "parity.json").write_text("{}")
    again = make.bundle(tmp_path / "bundle", overwrite=True)
    assert not (again.path / "parity.json").exists()
    assert Bundle.open(again.path, check="full") == again
    assert leftovers(tmp_path) == []

    plan = again.path / "engines" / "key" / "vision.plan"
    plan.parent.mkdir(parents=True)
    plan.write_text("hours of work")
    third = make.bundle(tmp_path / "bundle", overwrite=True)
    assert plan.read_text() == "hours of work", "engines are no part of an export"
    assert Bundle.open(third.path, check="full") == third
    assert leftovers(tmp_path) == []

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="other files"):
        make.bundle(precious, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years"

    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        make.bundle(tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    make.bundle(tmp_path / "empty")


SLOW_WRITER = """
import sys, time, pathlib
sys.path.insert(0, {here!r})
import make
from foveate.runtime.bundle import BundleWriter
with BundleWriter(pathlib.Path({target!r}), overwrite=True) as writer:
    make.write_files(writer.path)
    writer.finish(make.manifest(), lambda done, total: (print("hashing", flush=True), time.sleep(60)))
"""


def start_writer(target: Path) -> subprocess.Popen[str]:
    """A process that has written all files and is kept waiting in the middle of `finish`."""
    code = SLOW_WRITER.format(here=str(HERE), target=str(target))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "hashing"
    return process


@pytest.mark.parametrize("replacing", [False, True])
def test_kill_in_the_middle(tmp_path: Path, replacing: bool) -> None:
    target = tmp_path / "bundle"
    old = make.bundle(target) if replacing else None
    process = start_writer(target)
    lock, partial = (tmp_path / name for name in leftovers(tmp_path))
    assert lock.name == ".bundle.lock"
    # While it lives, nobody else writes there, and others leave its folder alone.
    make.bundle(tmp_path / "other")
    with pytest.raises(UsageError, match="another export is writing"):
        break_off(target, overwrite=True)
    assert partial.is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert partial.is_dir()
    with pytest.raises(BundleError, match="broken off"):
        Bundle.open(partial)
    if old is None:
        with pytest.raises(BundleError, match="no bundle"):
            Bundle.open(target)
    else:
        assert Bundle.open(target, check="full") == old
    again = make.bundle(target, overwrite=replacing)
    assert Bundle.open(target, check="full") == again
    assert leftovers(tmp_path) == []


def test_kill_between_the_two_renames(tmp_path: Path) -> None:
    """The old bundle had stepped aside, the new one had not come: the next run puts it back first."""
    old = make.bundle(tmp_path / "bundle")
    old.path.rename(tmp_path / ".bundle.old-4711")
    with pytest.raises(UsageError, match="--overwrite"):
        make.bundle(tmp_path / "bundle")
    assert Bundle.open(tmp_path / "bundle", check="full") == old


def test_too_little_space_is_said_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match=r"no space left.*MiB free"),
        BundleWriter(tmp_path / "bundle", expected_bytes=1 << 60),
    ):
        pytest.fail("must not be entered")
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import sys, pathlib, resource
sys.path.insert(0, {here!r})
import make
from foveate.runtime.bundle import Bundle, BundleWriter
from foveate.runtime.errors import ExportError
target = pathlib.Path({target!r})
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with BundleWriter(target) as writer:
        make.write_files(writer.path)
        try:
            with (writer.path / "onnx" / "weights.bin").open("wb", buffering=0) as file:
                for _ in range(64):
                    file.write(bytes(1 << 16))
        except OSError as error:
            raise RuntimeError("a library's own words") from error  # as exporters wrap it
        writer.finish(make.manifest())
except ExportError as error:
    print(error)
    sys.exit(error.exit_code if not list(target.parent.iterdir()) else 99)
"""


def check_full_disk(target: Path, limit: int) -> None:
    code = FULL_DISK.format(here=str(HERE), target=str(target), limit=limit)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == ExportError.exit_code, done.stdout + done.stderr
    assert "no space left" in done.stdout
    assert "MiB written" in done.stdout
    assert "run the same command again" in done.stdout


def test_full_disk_by_size_limit(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_full_disk(tmp_path / "out" / "bundle", limit=1 << 20)
    assert Bundle.open(make.bundle(tmp_path / "out" / "bundle").path, check="full")


def test_full_disk_for_real(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        check_full_disk(disk / "bundle", limit=0)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="cannot write"), BundleWriter(tmp_path / "file" / "bundle"):
        pytest.fail("must not be entered")


def write_while_something_appears(target: Path, *, overwrite: bool) -> None:
    with BundleWriter(target, overwrite=overwrite) as writer:
        make.write_files(writer.path)
        target.mkdir()
        (target / "thesis.tex").write_text("years")
        writer.finish(make.manifest())


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_during_the_export_is_not_lost(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(UsageError, match="holds other files"):
        write_while_something_appears(tmp_path / "bundle", overwrite=overwrite)
    assert (tmp_path / "bundle" / "thesis.tex").read_text() == "years"
    assert leftovers(tmp_path) == []


def test_the_old_bundle_comes_back_when_the_new_one_cannot_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, rename = make.bundle(tmp_path / "bundle"), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError(13, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ExportError, match="cannot write"):
        make.bundle(tmp_path / "bundle", overwrite=True)
    assert Bundle.open(tmp_path / "bundle", check="full") == old
    assert leftovers(tmp_path) == []


def test_odd_targets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder of its own"):
        BundleWriter(Path("/"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    made = make.bundle(tmp_path / "link")
    assert made.path == tmp_path / "real"
    assert make.bundle(tmp_path / "link", overwrite=True) == made
    assert (tmp_path / "link").is_symlink()
    (tmp_path / ".b[1].partial-1").mkdir()
    (tmp_path / ".b[1].lock").touch()
    make.bundle(tmp_path / "b[1]")
    assert leftovers(tmp_path) == []
