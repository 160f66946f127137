"""`--backend`: what is refused without a GPU, and whole commands over the doubles of one."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles import ort_cuda
from doubles.cudart import Cudart
from doubles.fixtures import cudart  # noqa: F401
from typer.testing import Result

Foveate = Callable[..., Result]


@pytest.fixture
def gpu(cudart: Cudart, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cudart]:  # noqa: F811
    """A machine with one GPU, of which ONNX Runtime's CPU provider does the work."""
    ort_cuda.install(monkeypatch)
    yield cudart
    gc.collect()


def words(result: Result) -> str:
    return " ".join(result.stderr.replace("│", " ").split())


def test_what_cannot_be_is_refused_with_a_mend(foveate: Foveate, bundle: Path) -> None:
    ask = ("run", bundle, "--prompt", "Hi")
    unknown = foveate(*ask, "--backend", "openvino")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "no such backend" in words(unknown)
    assert "tensorrt-provider" in words(unknown)
    whole = foveate(*ask, "--backend", "cuda")
    assert whole.exit_code == 2
    assert "no float32" in words(whole)
    assert "--target cuda" in words(whole)
    compared = foveate("eval", "demo", "--methods", "all", "--backend", "cuda")
    assert compared.exit_code == 2
    assert "--backend cuda does not go with --methods" in words(compared)


def test_run_says_what_ran(foveate: Foveate, bundle: Path, image: Path, gpu: Cudart) -> None:
    ask = ("run", bundle, "--image", image, "--prompt", "What is this?", "--max-new-tokens", 6, "--json")
    on_cpu, on_gpu = json.loads(foveate(*ask).stdout), json.loads(foveate(*ask, "--backend", "cuda").stdout)
    assert (on_cpu["backend"], on_cpu["notes"]) == ("onnxruntime", [])
    assert (on_gpu["backend"], on_gpu["layout"], on_gpu["notes"]) == ("cuda", "fused", [])
    assert on_gpu["token_ids"] == on_cpu["token_ids"]
    assert "cudaMemcpyAsync" in gpu.calls


def test_the_ladder_is_climbed_on_the_backend(bundle: Path, checkpoint: Path, gpu: Cudart) -> None:
    """Its drivers and the runtime both run there; what the bundle says of itself stays as it was."""
    from foveate.tools.parity.ladder import Settings
    from foveate.tools.parity.prompts import CASES
    from foveate.tools.parity.verify import verify

    settings = Settings(cases=CASES[:1], budgets=("own rule",), new_tokens=4, threads=1, backend="cuda")
    before = len(gpu.calls)
    report = verify(bundle, checkpoint, rungs=("P1", "P2", "P3", "P4"), settings=settings)
    assert report.passed, report.first_divergence
    assert len(gpu.calls) - before > 200
    assert not (bundle / "parity.json").exists()


def test_doctor_names_the_gpu_or_says_why_there_is_none(
    foveate: Foveate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from doubles import cudart as double

    double.install(monkeypatch)
    found = json.loads(foveate("doctor", "--json").stdout)["gpu"]
    assert found["devices"] == [{"name": "Double of a GPU", "capability": "9.0", "memory_bytes": 1 << 30}]
    assert (found["driver"], found["problem"]) == (13000, "")
    assert "compute capability 9.0" in foveate("doctor").stdout
    double.install(monkeypatch, Cudart(driver=None))
    none = json.loads(foveate("doctor", "--json").stdout)["gpu"]
    assert none["devices"] == []
    assert "cudaErrorInsufficientDriver" in none["problem"]
