"""The table on a tiny model that knows nothing: what is asked, kept, counted, timed and stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from foveate.export import export_model
from foveate.runtime.errors import ExportError, UsageError
from foveate.tools.eval import bundles, compare, run
from foveate.tools.eval.bundles import Made, NoAdapterError
from foveate.tools.eval.cells import Store
from foveate.tools.eval.compare import Comparison, Contestants
from foveate.tools.eval.rows import Row, make_row
from foveate.tools.evaluate import Exam
from foveate.tools.evaluation import OWN_RULE

PLAN = "cls-knee:min_keep=3 random@1:ratio=0.5"
TOKENS = 25


@pytest.fixture(scope="module")
def made(shallow: Path, shallow_bundle: Path) -> dict[str, Made]:
    """The unpruned model and one with a cut at both sites."""
    full = export_model(shallow, shallow.parent / "none", plan=["none"], layouts=("fused",)).path
    return {"none": Made(full, "none"), PLAN: Made(shallow_bundle, "both")}


@pytest.fixture
def contestants(
    made: dict[str, Made], shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Contestants:
    def bundle_of(row: Row, progress: object) -> Made:
        if row.methods == ("exit",):
            raise NoAdapterError("no adapter")
        if row.methods == ("fastv",):
            raise ExportError("the disk is full")
        return made[row.name]

    monkeypatch.setattr(compare, "bundle_of", bundle_of)
    monkeypatch.setattr(compare, "CHECKPOINT", shallow)
    return Contestants(Exam.draw(3), (0.5, 0.25), Store(tmp_path / "cells"), pairs=1)


def _compare(contestants: Contestants) -> Comparison:
    return contestants.compare([make_row(name, 2) for name in (PLAN, "exit", "fastv")])


def test_a_row_is_measured_once(contestants: Contestants, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _compare(contestants)
    row, missing, broken = found.outcomes
    assert [cell.budget for cell in row.cells] == [OWN_RULE, "0.5", "0.25"]
    assert (missing.problem, missing.broken) == ("no adapter", False)
    assert "disk is full" in broken.problem
    assert broken.broken
    own, half, quarter = row.cells
    # Two cuts: the first one leaves the root of the budget.
    assert quarter.asked == {"encoder": 13, "decoder@1": 6}
    assert quarter.point.sites == {"encoder": 13 / TOKENS, "decoder@1": pytest.approx(6 / 13)}
    assert quarter.obeyed
    assert not own.fixed
    assert quarter.speed is not None
    assert sum(half.scenes) == half.point.accuracy.right
    assert len(half.looks[0].kept) == 13
    assert quarter.work.total < half.work.total < found.full.work.total
    # The unpruned graphs do exactly what the formula says; choosing costs a little on top.
    assert found.full.work.total == found.full.formula
    assert 0 < quarter.work.total - quarter.formula < 0.1 * quarter.formula

    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("measured again")

    for name in ("answer", "count_work", "measure"):
        monkeypatch.setattr(compare, name, refuse)
    assert _compare(contestants) == found
    fresh = Contestants(contestants.exam, (0.5, 0.25), contestants.store, pairs=2)
    assert "measured again" in fresh.outcome(make_row(PLAN, 2)).problem


def test_a_bug_in_one_method_stops_nothing(contestants: Contestants, monkeypatch: pytest.MonkeyPatch) -> None:
    def trip(bundle: Path, *given: object) -> None:
        raise ZeroDivisionError("odd")

    contestants.full.cell("1", {})
    monkeypatch.setattr(compare, "count_work", trip)
    assert _compare(contestants).outcomes[0].problem == "ZeroDivisionError: odd"


def test_a_row_that_no_budget_changes(contestants: Contestants, made: dict[str, Made]) -> None:
    """The unpruned bundle has no cut, so it stands for methods that leave out arithmetic alone."""
    opened = compare.Opened(contestants, make_row("none", 2), made["none"])
    assert opened.cell(OWN_RULE, {}).fixed
    assert opened.keep(0.5) == {}


def test_what_is_written(contestants: Contestants, tmp_path: Path) -> None:
    paths = run.write(_compare(contestants), tmp_path / "out")
    assert [path.name for path in paths] == list(run.FILES)
    stored = json.loads(paths[2].read_text(encoding="utf-8"))
    assert stored["visual_tokens"] == TOKENS
    assert not list((tmp_path / "out").glob("*.new"))


def test_a_bundle_is_made_anew_when_its_method_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    row = make_row("pyramiddrop@1", 2)
    place, key = bundles.place_of(row)
    assert place.name == f"pyramiddrop-1-{key}"
    assert bundles.place_of(row)[1] == key
    assert bundles.place_of(make_row("pyramiddrop@1:share=0.3", 2))[1] != key
    files = {path.name for path in bundles._closure(["foveate.pruning.methods.pyramiddrop"])}
    assert {"pyramiddrop.py", "attention.py", "selection.py", "budget.py"} <= files
    monkeypatch.setattr(bundles, "ADAPTERS", Path("/nowhere"))
    with pytest.raises(NoAdapterError, match="dyvte"):
        bundles.place_of(make_row("dyvte@2", 6))
    assert not bundles.needs_export(make_row("dyvte@2", 6))


def test_orders_that_there_are_not(tmp_path: Path) -> None:
    silent: Callable[..., None] = lambda *given: None  # noqa: E731
    with pytest.raises(UsageError, match="out of range"):
        run.compare_methods(run.Order(("all",), budgets=(0.0,)), tmp_path, silent, silent)
    with pytest.raises(UsageError, match="vtc-cls"):
        run.compare_methods(run.Order(("vtcls",)), tmp_path, silent, silent)
    assert not list(tmp_path.iterdir())
