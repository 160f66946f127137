"""Comparing and reporting: a NaN is a difference, a rung without checks is no pass, JSON stays JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from foveate.tools.parity.compare import close, close_rows, equal
from foveate.tools.parity.report import Check, ParityReport, Place, Rung, Status, print_report


def test_close_finds_the_first_and_the_worst() -> None:
    wanted = np.zeros((3, 4), np.float32)
    got = wanted.copy()
    got[1, 2], got[2, 0] = 1e-3, 5e-3
    found = close(got, wanted)
    assert (found.first, found.worst) == ((1, 2), (2, 0))
    assert found.largest == pytest.approx(5e-3)
    assert "2 of 12" in found.problem


def test_merged_rows_are_measured_by_the_largest() -> None:
    wanted = np.array([[0.0, 8.0], [1.0, -2.0]], np.float32)
    assert close_rows(wanted + np.float32(7e-5), wanted).agrees
    assert close_rows(wanted + np.float32(9e-5), wanted).first == (0, 0)
    assert close_rows(wanted[:, :0], wanted[:, :0]).agrees


def test_close_allows_rounding_and_no_more() -> None:
    wanted = np.array([1.0, 1600.0], np.float32)
    assert close(wanted + np.array([9e-5, 9e-3], np.float32), wanted).agrees
    assert not close(wanted + np.array([9e-5, 9e-3], np.float32), wanted, absolute_only=True).agrees
    assert not close(wanted + np.array([2e-4, 0.0], np.float32), wanted).agrees


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_close_to_what_is_no_number(value: float) -> None:
    assert not close(np.array([value], np.float32), np.zeros(1, np.float32)).agrees
    assert not close(np.array([value], np.float32), np.array([value], np.float32)).agrees


def test_shapes_must_be_equal() -> None:
    assert "shape" in close(np.zeros((2, 3)), np.zeros((3, 2))).problem
    assert close(np.zeros((0, 3)), np.zeros((0, 3))).agrees


@pytest.mark.parametrize(
    ("got", "wanted", "first"),
    [([1, 2, 3], [1, 2, 4], (2,)), ([1, 2], [1, 2, 4], (2,)), ([1, 2, 4], [1, 2], (2,)), ([], [1], (0,))],
)
def test_equal_names_the_place(got: list[int], wanted: list[int], first: tuple[int]) -> None:
    assert equal(got, wanted).first == first
    assert equal(wanted, wanted).agrees


def rung(*statuses: Status) -> Rung:
    return Rung("P9", "nine", tuple(Check(status.value, status) for status in statuses))


def test_a_rung_is_as_good_as_its_worst_check() -> None:
    assert rung().status is Status.CANNOT_RUN
    assert rung(Status.PASSED, Status.NOT_APPLICABLE).status is Status.PASSED
    assert rung(Status.NOT_APPLICABLE).status is Status.NOT_APPLICABLE
    assert rung(Status.PASSED, Status.CANNOT_RUN).status is Status.CANNOT_RUN
    assert rung(Status.CANNOT_RUN, Status.FAILED).status is Status.FAILED


def test_a_rung_that_cannot_run_fails_the_ladder() -> None:
    assert ParityReport("b", "c", (rung(Status.PASSED), rung(Status.NOT_APPLICABLE))).passed
    assert not ParityReport("b", "c", (rung(Status.PASSED), rung(Status.CANNOT_RUN))).passed


def test_the_report_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    failure = Check(
        "layer", Status.FAILED, "0.1 instead of 0.2", Place("decoder", 3, (4, 5)), float("inf"), 0.5
    )
    report = ParityReport("b", "c", (Rung("P1", "one", (Check("fine", Status.PASSED), failure), 1.0),))
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["first_divergence"]["check"]["where"] == {"stage": "decoder", "layer": 3, "index": [4, 5]}
    print_report(report, Console(width=120))
    shown = capsys.readouterr().out
    assert "first divergence: P1 at stage decoder, layer 3, index [4, 5]" in shown
    assert "1/2" in shown
