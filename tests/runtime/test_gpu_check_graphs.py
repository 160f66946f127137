"""The rows of the GPU check that record steps, over the doubles: they fail if nothing was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import ort_cuda
from doubles.cudart import Cudart
from engines_made import Doubles

from foveate.runtime.backends import cuda_steps
from foveate.runtime.tensorrt.context import Context
from foveate.tools.gpu_check.jobs import graphs
from foveate.tools.gpu_check.records import AbsentError, Job, Row


def compare(path: Path, backend: str) -> dict[str, Any]:
    row = Row("graphs", "", "graphs:compare", 1)
    return graphs.compare(Job(path.parent, row, lambda line: None), path.name, backend)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough tokens for a recording and its proofs, and no more."""
    monkeypatch.setattr(graphs, "_MIXED", (12, 6, 12, 6))


@pytest.fixture
def on_cuda(few: None, bundles: dict[str, Path], cudart: Cudart, monkeypatch: pytest.MonkeyPatch) -> Path:
    ort_cuda.install(monkeypatch)
    return bundles["pruned"]


def test_onnxruntime_records_and_mixes(on_cuda: Path) -> None:
    found = compare(on_cuda, "cuda")
    assert found["steps recorded"] >= 2 * 2  # of one and of two sequences, in more than one segment
    assert found["steps recorded, mixed"] >= 2


def test_in_half_precision_replays_are_proven(
    few: None, cuda_bundle: Path, cudart: Cudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    ort_cuda.install(monkeypatch)
    job = Job(cuda_bundle.parent, Row("graphs", "", "graphs:prove", 1), lambda line: None)
    found = graphs.prove(job, cuda_bundle.name, "cuda")
    assert found["steps recorded"] >= 2 * 3  # of one and of two sequences, in three segments
    assert found["batch 1: % of tokens as without"] == 100  # the CPU does not split by it
    monkeypatch.setattr(np, "array_equal", lambda *_, **__: False)
    with pytest.raises(graphs.GraphsError, match=cuda_steps.WRONG):
        graphs.prove(job, cuda_bundle.name, "cuda")


def test_short_answers_are_no_pass(on_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MIXED", (3, 3))
    with pytest.raises(graphs.GraphsError, match="nothing says why"):
        compare(on_cuda, "cuda")


def test_wrong_replays_fail_and_what_cannot_be_recorded_was_not_run(
    on_cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "array_equal", lambda *_, **__: False)
    with pytest.raises(graphs.GraphsError, match=cuda_steps.WRONG):
        compare(on_cuda, "cuda")
    monkeypatch.setattr(cuda_steps, "_MOST_GRAPHS", 0)
    with pytest.raises(AbsentError, match="steps of other shapes"):
        compare(on_cuda, "cuda")


def test_engines_record_and_mix(few: None, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Doubles():
        found = compare(engines, "tensorrt")
        assert found["steps recorded"] >= 2 * 2
        assert found["steps recorded, mixed"] >= 2
        monkeypatch.setattr(Context, "captured", False)
        with pytest.raises(graphs.GraphsError, match="nothing says why"):
            compare(engines, "tensorrt")
