"""Building with the doubles: what is written, when it is built again, and what a failure leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.tensorrt.install import install
from engines_made import PROFILE

from foveate.export.engines import build as building
from foveate.export.engines.build import Outcome, build
from foveate.export.engines.intent import intend
from foveate.export.engines.machine import look_around
from foveate.export.engines.options import make_options
from foveate.runtime.bundle import Bundle
from foveate.runtime.engines import (
    EngineRecord,
    changes,
    engines_folder,
    identity,
    records,
    timing_cache,
)
from foveate.runtime.errors import ExportError, FoveateError, UsageError
from foveate.runtime.files import free_lock, take_lock
from foveate.runtime.integrity import hash_files

WORDS = PROFILE
STAGES = ["vision_segmented", "embed", "decoder_0", "decoder_1", "decoder_2"]

pytestmark = pytest.mark.usefixtures("tensorrt")


@pytest.fixture
def built(engines: Path, tmp_path: Path) -> Path:
    """A copy of a bundle with native engines of this machine, built with WORDS."""
    return Path(shutil.copytree(engines, tmp_path / "built"))


def record_of(path: Path) -> EngineRecord:
    ((_, record),) = records(path)
    assert isinstance(record, EngineRecord)
    return record


def made(
    path: Path, profile: str = WORDS, progress: Any = None, rebuild: bool = False, **words: Any
) -> Outcome:
    here = look_around()
    options = make_options(here, **words)
    intent = intend(Bundle.open(path), options, profile, here.machine.tensorrt)
    return build(intent, here, rebuild=rebuild, progress=progress or (lambda *args: None))


def left(path: Path) -> list[str]:
    """Everything beside the bundle's own files, hidden files included; what was measured may always stay."""
    own = {*Bundle.open(path, check="none").manifest.files, "manifest.json", ".verified", "parity.json"}
    files = (each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())
    return sorted(name for name in files if name not in own and not name.endswith(".cache"))


def test_all_or_what_changed_is_built(bundle: Path) -> None:
    first = made(bundle)
    assert first.reasons == ["there are no engines yet"]
    assert (first.built, first.reused) == (STAGES, [])
    ((folder, record),) = records(bundle)
    assert isinstance(record, EngineRecord)
    assert (folder, record) == (first.folder, first.record)
    assert folder.name == record.key
    for name, plan in record.stages.items():
        found = hash_files(folder, [plan.file])[plan.file]
        assert (found.bytes, found.sha256) == (plan.bytes, plan.sha256)
        assert "hidden" in plan.inputs or not name.startswith("decoder")
    assert record.capacity == (192, 192, 192)
    wanted = [f"engines/{record.key}/{name}.plan" for name in STAGES]
    assert left(bundle) == sorted([*wanted, f"engines/{record.key}/engine.json"])
    assert timing_cache(bundle, record.machine).is_file()
    assert Bundle.open(bundle, check="full").manifest, "engines do not belong to what was exported"

    again = made(bundle)
    assert (again.built, again.reasons) == ([], [])
    assert again.record == record.model_copy(update={"built": again.record.built})
    assert again.record.built > record.built, "what was asked for last is what is run"
    assert records(bundle) == [(folder, again.record)]

    longer = made(bundle, WORDS.replace("new=32", "new=100"))
    assert longer.reasons == ["profile new 32 -> 100"]
    assert longer.reused == ["vision_segmented", "embed"], "only caches are larger"
    assert len(records(bundle)) == 2

    plan = first.folder / "decoder_1.plan"
    plan.write_bytes(plan.read_bytes()[:-10])
    mended = made(bundle)
    assert mended.built == ["decoder_1"]
    assert "decoder_1.plan has" in mended.reasons[0]
    assert "instead of" in mended.reasons[0]
    assert len(records(bundle)) == 2
    assert made(bundle).built == []


def test_another_gpu_has_engines_of_its_own(built: Path) -> None:
    first, here = record_of(built), look_around()
    other = replace(here, machine=here.machine.model_copy(update={"compute_capability": "8.0"}))
    second = build(intend(Bundle.open(built), make_options(here), WORDS, first.tensorrt), other)
    assert second.reasons == ["compute capability 9.0 -> 8.0"]
    assert second.built == STAGES
    assert {folder.name for folder, _ in records(built)} == {first.key, second.record.key}


def test_other_graphs_and_options_are_named(built: Path) -> None:
    record = record_of(built)
    plans = dict(record.stages)
    plans["decoder_1"] = plans["decoder_1"].model_copy(update={"graph_sha256": "0" * 64})
    options = record.options.model_copy(update={"level": 5})
    other = record.model_copy(update={"stages": plans, "weights_sha256": "1", "options": options})
    assert changes(record, other) == ["weights changed", "graph decoder_1 changed", "option level 3 -> 5"]
    assert set(identity(record)) >= {"TensorRT", "compute capability", "driver", "precision", "weights"}


def test_a_damaged_timing_cache_and_what_a_killed_run_left(built: Path) -> None:
    record = record_of(built)
    cache = timing_cache(built, record.machine)
    size = cache.stat().st_size
    partial = engines_folder(built) / ".partial-1"
    partial.mkdir()
    (partial / "embed.plan").write_bytes(b"half")
    lost = built / "onnx" / ".embed.engine-1.onnx"
    lost.write_bytes(b"half")
    assert record_of(built) == record
    assert Bundle.open(built), "such a file does not make the bundle another"
    again = made(built, rebuild=True)
    assert (again.built, again.reasons, again.warnings) == (STAGES, ["--rebuild was given"], [])
    assert not partial.exists()
    assert not lost.exists()
    assert record_of(built).key == record.key
    cache.write_bytes(b"nonsense")
    warned = made(built, rebuild=True)
    assert any(cache.name in text for text in warned.warnings)
    assert cache.stat().st_size == size, "and it is whole again"


@pytest.mark.parametrize("content", [b"", b"nonsense"], ids=["empty", "damaged"])
def test_a_timing_cache_that_cannot_be_used_is_said(built: Path, content: bytes) -> None:
    cache = timing_cache(built, record_of(built).machine)
    cache.write_bytes(content)
    warned = made(built, rebuild=True).warnings
    assert [text for text in warned if cache.name in text] == [
        f"{STAGES[0]}: {cache.name} is of another machine or damaged, and starts anew"
    ], "the first graph says so; the others find what it wrote"


def test_a_timing_cache_that_was_not_written_is_said(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polygraphy writes none, without a word, where TensorRT gives none; what was there stays."""
    import tensorrt as trt

    cache = timing_cache(built, record_of(built).machine)
    before = cache.read_bytes()
    monkeypatch.setattr(trt.IBuilderConfig, "get_timing_cache", lambda self: None)
    warned = made(built, rebuild=True).warnings
    assert [text for text in warned if cache.name in text] == [
        f"{name}: {cache.name} was not written: what was measured is lost, and will be measured again"
        for name in STAGES
    ]
    assert cache.read_bytes() == before


def test_a_profile_of_steps_and_the_builder_s_limits_arrive(bundle: Path) -> None:
    """What was asked for is what the built engine has."""
    import tensorrt as trt

    outcome = made(bundle, workspace="64MiB", level=1)
    runtime = trt.Runtime(trt.Logger())
    engine = runtime.deserialize_cuda_engine((outcome.folder / "decoder_0.plan").read_bytes())
    assert engine is not None
    plan = outcome.record.stages["decoder_0"]
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert set(names) == {*plan.inputs, *plan.outputs}
    assert engine.num_optimization_profiles == len(plan.profiles)
    for index, record in enumerate(plan.profiles):
        for name, bounds in record.inputs.items():
            shapes = [tuple(each) for each in engine.get_tensor_profile_shape(name, index)]
            assert shapes == [bounds.min, bounds.opt, bounds.max]
    assert engine.get_aliased_input_tensor("present_key_0") == "past_key_0"


# --- failures -----------------------------------------------------------------------------------------------


def test_an_attention_without_fused_kernel_is_refused_with_its_mend(bundle: Path) -> None:
    """The double has no fused kernel for float32, as NVIDIA says of TensorRT."""
    with pytest.raises(ExportError, match="--fused-only") as caught:
        made(bundle, fused_only=True)
    assert "vision_segmented" in str(caught.value)
    assert left(bundle) == []


def test_what_the_parser_says_is_passed_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker is left out, so that the parser gets to see a graph that it refuses."""
    import onnx_ir as ir

    path = bundle / "onnx" / "embed.onnx"
    model = ir.load(path)
    (where, *_) = (node for node in model.graph if node.op_type == "Where")
    where.op_type, where.domain, where.name = "Bogus", "", "the_bad_node"
    ir.save(model, path)
    monkeypatch.setattr("foveate.export.engines.intent.require_pass", lambda report: None)
    here = look_around()
    intent = intend(Bundle.open(bundle, check="none"), make_options(here), WORDS, here.machine.tensorrt)
    with pytest.raises(ExportError) as caught:
        build(intent, here)
    assert "stage 'embed'" in caught.value.message
    assert "Bogus" in caught.value.found
    assert "the_bad_node" in caught.value.found
    assert left(bundle) == []


@pytest.mark.parametrize("stage", ["vision_segmented", "decoder_1"])
def test_ctrl_c_stops_the_builder_and_leaves_what_was_there(built: Path, stage: str) -> None:
    before, files = record_of(built), left(built)
    # Jobs in the background are started with Ctrl-C ignored.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(what: str, done: float, total: float) -> None:
        if what.startswith(stage) and done < total:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            made(built, progress=interrupt, rebuild=True)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert left(built) == files
    assert record_of(built) == before


def test_a_full_disk_is_said_and_nothing_is_kept(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(signal, "SIGXFSZ", signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # graphs fit, plans do not
    try:
        with pytest.raises(ExportError, match="no space left for engines"):
            made(bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(bundle) == []


def test_two_builds_of_one_bundle_do_not_meet(bundle: Path) -> None:
    folder = engines_folder(bundle)
    folder.mkdir()
    lock = take_lock(folder / building._LOCK)
    try:
        with pytest.raises(UsageError, match="another process is building"):
            made(bundle)
    finally:
        free_lock(lock, folder / building._LOCK)


def test_a_place_that_cannot_be_written(bundle: Path) -> None:
    engines_folder(bundle).write_text("a file where the folder ought to be")
    with pytest.raises(ExportError, match="cannot be written"):
        made(bundle)


# --- machines and options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"workspace": "9000GiB"}, "more than the GPU has"),
        ({"workspace": "plenty"}, "workspace is no size"),
        ({"workspace": "3"}, "workspace is no size"),
        ({"level": 6}, "level is out of range"),
        ({"attention": "flash"}, "native or portable"),
        ({"hardware": "all"}, "ampere-plus"),
    ],
)
def test_options_are_checked_against_the_machine(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_options(look_around(), **words)


def test_sizes_are_read_in_both_kinds_of_units() -> None:
    read = {text: make_options(None, workspace=text).workspace for text in ("2GiB", "1.5 gb", "1048576")}
    assert read == {"2GiB": 2 << 30, "1.5 gb": 1_500_000_000, "1048576": 1 << 20}


def test_tensorrt_10_has_the_portable_lowering(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version="10.16.1.11")
    with pytest.raises(UsageError, match="--attention portable"):
        make_options(look_around(), attention="native")
    outcome = made(bundle)
    assert outcome.record.attention == "portable"
    assert outcome.record.tensorrt == "10.16.1.11"
    assert not any("key_value_length" in name for name in outcome.record.stages["decoder_0"].inputs)


def test_without_tensorrt_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt")
    with pytest.raises(FoveateError) as caught:
        look_around()
    assert caught.value.mend == 'pip install "foveate[tensorrt]"'
    assert caught.value.exit_code == 6


def test_a_record_that_cannot_be_read_says_why(bundle: Path) -> None:
    for name, text in (("a", "{"), ("b", json.dumps({"format": 99})), ("c", json.dumps({"format": 1}))):
        folder = engines_folder(bundle) / name
        folder.mkdir(parents=True)
        (folder / "engine.json").write_text(text)
    reasons = [reason for _, reason in records(bundle)]
    assert all(isinstance(reason, str) for reason in reasons)
    assert "JSON" in str(reasons[0])
    assert "format 99" in str(reasons[1])
    assert "foveate" in str(reasons[2])


def test_a_damaged_record_is_the_reason(built: Path) -> None:
    ((folder, _),) = records(built)
    empty = record_of(built).model_copy(update={"stages": {}})
    (folder / "engine.json").write_text(empty.model_dump_json())
    assert made(built).reasons == [f"{stage} is not among the engines" for stage in STAGES]
    (folder / "engine.json").write_text("{")
    (reason,) = made(built).reasons
    assert f"the record of {folder.name} is damaged: not readable as JSON" in reason
    assert made(built).reasons == []


def test_the_command_of_a_record_builds_it_again(built: Path) -> None:
    record = record_of(built)
    options = record.options.model_copy(update={"level": 1, "workspace": 1 << 26, "tf32": True})
    words = record.model_copy(update={"options": options}).command(built)
    assert words.startswith(f"foveate build {built} --profile batch=4,")
    assert words.endswith("--level 1 --workspace 67108864 --tf32")
