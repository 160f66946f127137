"""`foveate build` with doubles of TensorRT and CUDA: what it prints, its codes, and what inspect shows."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "runtime")]

from doubles.fixtures import cudart, tensorrt  # noqa: E402
from engines_made import PROFILE, engines  # noqa: E402

__all__ = ["cudart", "engines", "tensorrt"]

Foveate = Callable[..., Result]
SMALL = "batch=1,prompt=64,new=16,logits=1"


@pytest.fixture(scope="module")
def made(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle with engines."""
    return Path(shutil.copytree(engines, tmp_path_factory.mktemp("build") / "bundle"))


@pytest.mark.usefixtures("tensorrt")
def test_what_is_there_is_not_built_and_what_changed_is_said(made: Path, foveate: Foveate) -> None:
    same = foveate("build", made, "--profile", PROFILE)
    assert same.exit_code == 0, same.stderr
    assert "up to date" in same.stdout
    done = foveate("build", made, "--profile", PROFILE.replace("new=32", "new=100"), "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["reasons"] == ["profile new 32 -> 100"]
    assert set(told["built"]) == {"decoder_0", "decoder_1", "decoder_2"}
    assert set(told["reused"]) == {"vision_segmented", "embed"}
    assert Path(told["engines"]).name == told["key"]
    shown = foveate("build", made, "--profile", PROFILE.replace("new=32", "new=200"))
    assert "because: profile new" in shown.stdout
    assert "wrote" in shown.stdout


def test_inspect_shows_engines(made: Path, foveate: Foveate) -> None:
    shown = foveate("inspect", made)
    assert "TensorRT engines" in shown.stdout
    told = json.loads(foveate("inspect", made, "--json").stdout)
    assert {engine["tensorrt"] for engine in told["engines"]} == {"11.4.0.106"}
    (made / "engines" / told["engines"][0]["key"] / "engine.json").write_text("{")
    assert "not readable" in foveate("inspect", made).stdout


@pytest.fixture
def bare(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle without engines, on a machine without TensorRT, polygraphy and CUDA's bindings."""
    for package in ("tensorrt", "polygraphy", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, package, None)
    return Path(shutil.copytree(engines, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")))


def test_a_dry_run_needs_no_gpu_and_writes_nothing(bare: Path, foveate: Foveate) -> None:
    done = foveate("build", bare, "--profile", SMALL, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["profile"]["prompt"] == 64
    assert told["capacity"] == [128, 128, 128]
    assert {stage["verdict"] for stage in told["stages"].values()} <= {"passes", "taken"}
    held = sum(stage["least_plan_bytes"] for stage in told["stages"].values())
    assert held == pytest.approx((bare / "onnx" / "weights.bin").stat().st_size, rel=0.3), "each weight once"
    assert told["stages"]["decoder_1"]["inputs_added"] == ["write_index_1", "key_value_length_1"]
    assert not (bare / "engines").exists()


def test_without_tensorrt_the_line_that_installs_it(bare: Path, foveate: Foveate) -> None:
    done = foveate("build", bare, "--profile", SMALL)
    assert done.exit_code == 6
    assert 'pip install "foveate[tensorrt]"' in " ".join(done.stderr.split())
    assert not (bare / "engines").exists()


def test_profiles_are_shown_as_ranges(engines: Path, foveate: Foveate) -> None:
    shown = foveate("build", engines, "--dry-run", "--profile", SMALL + ",buckets=24").stdout
    assert "sequence 1-64" in shown
    assert "prefill of 24" in shown
    assert "nothing was built" in shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--profile", "tokens=3"), 2, "KEY=NUMBER"),
        (("--profile", "prompt=100000"), 2, "more tokens than the model has positions"),
        (("--attention", "flash"), 2, "native or portable"),
        (("--workspace", "much"), 2, "--workspace is no size"),
        (("--level", "9"), 2, "0 to 5"),
    ],
)
def test_bad_input_is_refused_before_anything_is_looked_for(
    engines: Path, foveate: Foveate, words: tuple[str, ...], code: int, said: str
) -> None:
    done = foveate("build", engines, *words, "--dry-run")
    assert done.exit_code == code
    assert said in " ".join(done.stderr.split())


def test_the_built_in_bundle_is_for_another_runtime(foveate: Foveate) -> None:
    done = foveate("build", "demo", "--dry-run")
    assert done.exit_code == 2
    assert "foveate export demo -o bundle --target tensorrt" in " ".join(done.stderr.split())
