"""The first questions to TensorRT, asked of its double: the graphs are sound and their oracles agree.

The double computes with ONNX Runtime and is no TensorRT: what passes here has shown that the rows can pass,
that they fail when the numbers are wrong, and nothing about the library.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.fixtures import cudart, tensorrt

from foveate.runtime.errors import BackendError
from foveate.tools.gpu_check.jobs import first_graphs, first_tests, trt_session
from foveate.tools.gpu_check.records import Job
from foveate.tools.gpu_check.rows import ROWS

__all__ = ["cudart", "tensorrt"]
ASKED = [row for row in ROWS if row.call.startswith("first_tests:")]


def run(row: Any) -> dict[str, Any]:
    """A row's function in this process."""
    function = getattr(first_tests, row.call.partition(":")[2])
    found: dict[str, Any] = function(Job(Path(), row, print), **row.options)
    return found


@pytest.mark.parametrize("row", ASKED, ids=lambda row: row.id)
def test_each_question_can_be_answered(row: Any, tensorrt: types.ModuleType) -> None:
    found = run(row)
    assert found
    if "lowest cosine" in found:
        assert first_tests.COSINE <= found["lowest cosine"] <= 1


def test_a_row_that_reads_one_slot_too_far_is_noticed(
    tensorrt: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = first_tests._steps

    def wrong(*given: Any) -> Any:
        for feeds, asked in honest(*given):
            yield {**feeds, "key_length_0": feeds["key_length_0"] + 1}, asked

    monkeypatch.setattr(first_tests, "_steps", wrong)
    with pytest.raises(first_tests.WrongError, match="cosine"):
        first_tests.native(Job(Path(), ASKED[0], print))


def test_what_tensorrt_refuses_is_an_error_and_not_a_number(tensorrt: types.ModuleType) -> None:
    plan = trt_session.build(
        first_graphs.half_top_k(), {"rows": first_tests._rows(), "score": ((2,), (24,), (64,))}
    )
    session = trt_session.Session(plan)
    rows = np.zeros((65, first_graphs.HIDDEN), np.float32)
    with pytest.raises(BackendError, match="refused the shape"):
        session.run({"rows": rows, "score": np.zeros(65, np.float32)})
    with pytest.raises(BackendError, match="'score' is float64"):
        session.run({"score": np.zeros(24)})


def test_the_order_of_the_questions_is_that_of_their_numbers() -> None:
    assert [row.id.split("-")[1] for row in ASKED] == ["1", "1", "2", "3", "4", "5", "6"]
