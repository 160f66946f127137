"""A bundle opens whole or says what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make
import pytest

from foveate.runtime.bundle import Bundle
from foveate.runtime.errors import BundleError, UsageError


def test_opens_what_was_written(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.path, check="full")
    assert opened == bundle
    assert opened.stage_path("vision").read_bytes().startswith(b"vision")
    assert opened.processor_path.is_dir()
    assert opened.layout_stages("fused") == ("vision", "embed", "decoder")
    assert set(opened.manifest.files) >= {"onnx/weights.bin", "processor/tokenizer.json"}


def test_says_what_the_path_is_instead(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle at"):
        Bundle.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(tmp_path / "file")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"is a checkpoint.*foveate export"):
        Bundle.open(tmp_path / "checkpoint")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "onnx/weights.bin has other content"),
        (lambda path: path.unlink(), "onnx/weights.bin is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "16,374 bytes instead of 16,384"),
        (lambda path: path.write_bytes(b""), "0 bytes instead of"),
    ],
    ids=["tampered", "missing", "truncated", "empty"],
)
@pytest.mark.parametrize("check", ["fast", "full"])
def test_damaged_file(bundle: Bundle, damage: Callable[[Path], Any], message: str, check: Any) -> None:
    damage(bundle.path / "onnx" / "weights.bin")
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle.path, check=check)
    assert "foveate export" in str(caught.value)
    assert caught.value.exit_code == 4


def test_fast_path_and_its_limit(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stamp saves the hashing; it is not fooled by a new time, and only by a restored one."""
    hashed: list[int] = []
    Bundle.open(bundle.path, progress=lambda done, total: hashed.append(done))
    assert not hashed  # the writer left a stamp
    weights = bundle.path / "onnx" / "weights.bin"
    os.utime(weights, ns=(1, 1))
    Bundle.open(bundle.path, progress=lambda done, total: hashed.append(done))
    assert hashed
    hashed.clear()
    Bundle.open(bundle.path, progress=lambda done, total: hashed.append(done))
    assert not hashed  # stamped again
    before = weights.stat()
    _flip(weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    Bundle.open(bundle.path, check="fast")
    with pytest.raises(BundleError, match="other content"):
        Bundle.open(bundle.path, check="full")
    Bundle.open(bundle.path, check="none")


def test_copied_bundle_is_hashed_again(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "copy", copy_function=shutil.copyfile)
    hashed: list[int] = []
    Bundle.open(tmp_path / "copy", progress=lambda done, total: hashed.append(done))
    assert hashed


def _edited(bundle: Bundle, edit: Callable[[dict[str, Any]], Any]) -> Path:
    path = bundle.path / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return bundle.path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format=99, news=1), "a newer Foveate.*format 99.*upgrade"),
        (lambda m: m.update(news=1), "unknown key 'news'"),
        (lambda m: m["model"].update(colour="red"), r"unknown key 'model\.colour'"),
        (lambda m: m.pop("stages"), "stages: field required"),
        (lambda m: m["model"].update(num_layers="many"), r"model\.num_layers"),
        (lambda m: m["model"].update(num_layers=4), "cache groups"),
        (lambda m: m["layouts"].update(odd=["nothing"]), "unknown stages"),
        (lambda m: m["pruning"].pop(), "one cache group more than decoder cuts"),
        (lambda m: m["stages"]["vision"].update(file="../../etc/passwd"), "leaves the bundle"),
        (lambda m: m["files"].pop("onnx/vision.onnx"), "no entry under files"),
        (lambda m: m.update(files={}), "lists no files"),
        (lambda m: m.update(format=1, news=1), "an older Foveate.*format 1.*export the bundle again"),
        (lambda m: m.update(format="2"), "format"),
        (lambda m: m["layouts"].update(fused=["vision"]), "ought to have 3 stages"),
        (lambda m: m["pruning"][1].update(layer=2), "no input keep_ratio_l2"),
        (lambda m: m.update(positions="original"), "was changed since the export"),
        (lambda m: m.pop("sha256"), "was changed since the export"),
    ],
)
def test_broken_manifest(bundle: Bundle, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(_edited(bundle, edit))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_manifest_that_is_no_manifest(bundle: Bundle, text: str) -> None:
    (bundle.path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(bundle.path)


def test_unknown_names_list_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="vision, embed, decoder"):
        bundle.stage_path("ears")
    with pytest.raises(UsageError, match="fused"):
        bundle.layout_stages("segmented")
    with pytest.raises(UsageError, match="fast or full or none"):
        Bundle.open(bundle.path, check="quick")  # type: ignore[arg-type]


def test_parity_is_recorded_without_losing_trust(bundle: Bundle) -> None:
    recorded = bundle.record_parity(True, {"P1": "pass"}, {"rungs": [1, 2]})
    hashed: list[int] = []
    opened = Bundle.open(bundle.path, progress=lambda done, total: hashed.append(done))
    assert not hashed
    assert opened == recorded
    assert opened.manifest.parity is not None
    assert opened.manifest.parity.passed
    assert json.loads((bundle.path / "parity.json").read_text()) == {"rungs": [1, 2]}
    Bundle.open(bundle.path, check="full")


def test_manifest_round_trip(bundle: Bundle) -> None:
    text = bundle.manifest.model_dump_json()
    assert type(bundle.manifest).model_validate_json(text) == bundle.manifest
    assert [cut.name for cut in make.manifest().pruning] == ["encoder", "decoder@1"]


@pytest.mark.parametrize("check", ["fast", "full"])
def test_added_file(bundle: Bundle, check: Any) -> None:
    (bundle.path / "processor" / ".DS_Store").touch()  # nothing loads it
    Bundle.open(bundle.path, check=check)
    (bundle.path / "processor" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"processor/preprocessor_config\.json was added"):
        Bundle.open(bundle.path, check=check)
