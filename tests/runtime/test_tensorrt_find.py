"""Engines of this machine are found among others, and of the others it is said what is wrong."""

from dataclasses import replace

import make
import pytest
from engine_records import plan, record

from foveate.runtime.bundle import Bundle
from foveate.runtime.engines import BuildOptions, EngineRecord, engines_folder, graph_hashes, weights_hash
from foveate.runtime.errors import EngineError
from foveate.runtime.tensorrt.find import Here, find_engines

HERE = Here("11.4.0.106", "9.0", "NVIDIA H200")


@pytest.fixture
def bundle(tmp_path):
    """A bundle of one layout, as engines are built of."""
    made = make.bundle(tmp_path / "bundle")
    manifest = made.manifest.model_copy(update={"layouts": {"segmented": made.manifest.layouts["fused"]}})
    return Bundle(made.path, manifest)


def write(bundle, key="a", size=4, **changes) -> EngineRecord:
    stages = {name: plan(name, graph_sha256=sha) for name, sha in graph_hashes(bundle.manifest).items()}
    weights = weights_hash(bundle.manifest)
    made = record(
        **({"stages": stages, "weights_sha256": weights, "built": "2026-01-01T00:00:00Z"} | changes)
    )
    folder = engines_folder(bundle.path) / key
    folder.mkdir(parents=True)
    for name in made.stages:
        (folder / f"{name}.plan").write_bytes(b"p" * size)
    (folder / "engine.json").write_text(made.model_dump_json())
    return made


def test_the_engines_of_this_machine_are_found(bundle):
    write(bundle)
    found = find_engines(bundle, HERE)
    assert found.folder.name == "a"
    assert found.plan("embed").read_bytes() == b"pppp"


def test_of_several_the_latest_is_taken(bundle):
    write(bundle, "a", built="2026-01-02T00:00:00Z")
    write(bundle, "b", built="2026-01-03T00:00:00Z")
    write(bundle, "c", built="2026-01-04T00:00:00Z", compute_capability="8.9")
    assert find_engines(bundle, HERE).folder.name == "b"


def test_without_engines_the_command_is_named(bundle):
    with pytest.raises(EngineError, match=f"has no TensorRT engines.*foveate build {bundle.path}"):
        find_engines(bundle, HERE)


def test_the_driver_is_no_reason(bundle):
    write(bundle, driver="12.8")
    assert find_engines(bundle, HERE).record.driver == "12.8"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tensorrt": "11.3.0.99"}, "it is for TensorRT 11.3.0.99"),
        ({"tensorrt": "10.16.1.11"}, "it is for TensorRT 10.16.1.11"),
        (
            {"gpu": "NVIDIA L4", "compute_capability": "8.9"},
            r"it is for NVIDIA L4 \(compute capability 8.9\)",
        ),
        ({"weights_sha256": "f" * 64}, "it was built of other weights"),
        ({"stages": {"embed": plan("embed")}}, r"it lacks vision, decoder.*other graphs \(embed\)"),
    ],
)
def test_of_each_it_is_said_why_not(bundle, changes, reason):
    write(bundle, **changes)
    with pytest.raises(EngineError, match=reason) as caught:
        find_engines(bundle, HERE)
    assert "batch=4,prompt=256,new=64" in caught.value.mend, "the command builds with the same profile"
    assert "NVIDIA H200" in caught.value.wanted


def test_all_reasons_come_together(bundle):
    write(bundle, "old", tensorrt="10.16.1.11", compute_capability="8.9")
    (engines_folder(bundle.path) / "broken").mkdir()
    (engines_folder(bundle.path) / "broken" / "engine.json").write_text("{")
    with pytest.raises(EngineError) as caught:
        find_engines(bundle, HERE)
    assert "old: it is for TensorRT 10.16.1.11, it is for H200 (compute capability 8.9)" in caught.value.found
    assert "broken: its record is damaged" in caught.value.found


@pytest.mark.parametrize(
    ("built", "options", "here", "fits"),
    [
        ("11.4.0.106", BuildOptions(), "11.4.0.200", True),  # another build of the same version
        ("11.3.0.99", BuildOptions(version_compatible=True), "11.4.0.106", True),
        ("11.5.0.1", BuildOptions(version_compatible=True), "11.4.0.106", False),
    ],
)
def test_versions(bundle, built, options, here, fits):
    write(bundle, tensorrt=built, options=options)
    assert _finds(bundle, replace(HERE, tensorrt=here)) == fits


@pytest.mark.parametrize(
    ("hardware", "built", "fits"),
    [
        ("none", "9.0", True),
        ("none", "8.0", False),
        ("same-capability", "9.0", True),
        ("same-capability", "8.0", False),
        ("ampere-plus", "8.0", True),
    ],
)
def test_gpus(bundle, hardware, built, fits):
    write(bundle, compute_capability=built, options=BuildOptions(hardware=hardware))
    assert _finds(bundle, HERE) == fits


def _finds(bundle, here):
    try:
        find_engines(bundle, here)
    except EngineError:
        return False
    return True


@pytest.mark.parametrize(
    ("size", "words"),
    [(3, "is truncated.*Found: 3 bytes.*Wanted: 4 bytes"), (5, "has changed"), (None, "is missing.*no file")],
)
def test_damaged_plans_are_told_before_anything_is_loaded(bundle, size, words):
    write(bundle)
    path = engines_folder(bundle.path) / "a" / "embed.plan"
    if size is None:
        path.unlink()
    else:
        path.write_bytes(b"p" * size)
    with pytest.raises(EngineError, match=words) as caught:
        find_engines(bundle, HERE)
    assert "stage 'embed'" in str(caught.value)
    assert "foveate build" in caught.value.mend
