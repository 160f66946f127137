"""foveate search: the rules on made-up measures, what is refused, a search on the built-in model."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.pruning.schedule import load_schedule, read_schedule
from foveate.runtime.errors import UsageError
from foveate.runtime.options import GenerateOptions
from foveate.tools.search import run
from foveate.tools.search.bench import Memory, Score
from foveate.tools.search.questions import (
    Question,
    demo_questions,
    fingerprint,
    read_questions,
    require_data,
)
from foveate.tools.search.rates import Depth, Rates, tokens_of
from foveate.tools.search.report import Found
from foveate.tools.search.rules import GRID, g_search, g_search_within, p_sigmoid, sigmoid_rates

DEPTH = Depth(12, (2, 4, 6, 9))


def test_places_and_blocks() -> None:
    assert Depth.spread(32, 5) == Depth(32, (2, 8, 14, 20, 26))
    assert Depth.spread(6, 9) == Depth(6, (1, 2, 3, 4, 5))
    assert Depth.spread(28, 1, first=13).blocks == (15,)
    assert DEPTH.blocks == (2, 2, 3, 3)
    assert DEPTH.average((1.0, 0.5, 0.5, 0.0)) == pytest.approx((2 + 2 + 1 + 1.5 + 0) / 12)
    assert DEPTH.cuts((1.0, 0.5, 0.5, 0.0)) == [(4, 0.5), (9, 0.0)]


@pytest.mark.parametrize("first", [0, 6, 7])
def test_no_such_place(first: int) -> None:
    with pytest.raises(UsageError, match="outside the decoder"):
        Depth.spread(6, 3, first=first)


@pytest.mark.parametrize(
    ("budget", "says"), [(0, "range"), (1, "range"), (-1, "range"), (math.nan, "range"), (0.1, "fits")]
)
def test_impossible_budget(budget: float, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        DEPTH.check_budget(budget)


def test_tokens_are_those_of_the_method() -> None:
    import torch

    from foveate.pruning.budget import scaled_count

    for entered in (1, 7, 64, 576, 2880):
        for rate in (*GRID, 0.1, 0.1155, 0.2999):
            rule = int(scaled_count(torch.tensor([entered]), rate))
            assert tokens_of(rate, entered) == min(max(rule, 1), entered)


@pytest.mark.parametrize("budget", [0.2, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("steepness", [0.0, 5.0, 40.0, 256.0])
def test_sigmoid_keeps_the_budget(steepness: float, budget: float) -> None:
    for depth in (DEPTH, Depth(32, tuple(range(2, 32)))):
        rates = sigmoid_rates(depth, steepness, budget)
        assert depth.average(rates) == pytest.approx(budget, abs=1e-4)
        assert all(a >= b for a, b in zip((1.0, *rates), rates, strict=False))
        if steepness == 0:
            assert max(rates) - min(rates) < 1e-9
    step = sigmoid_rates(Depth(32, tuple(range(2, 32))), 20000.0, 0.5)
    assert {round(rate) for rate in step} == {0, 1}
    assert sum(rate > 0.5 for rate in step) == 14


def test_g_search_finds_the_smallest_rates() -> None:
    """Every place has a rate below which answers are lost: exactly these are found, unless they rise."""
    needs = (0.5, 0.25, 0.0625, 0.0)
    asked: list[Rates] = []

    def measure(rates: Rates) -> float:
        asked.append(rates)
        return 1.0 - sum(rate < need for rate, need in zip(rates, needs, strict=True)) * 0.25

    assert g_search(DEPTH, measure, 1.0) == needs
    assert len(asked) <= 4 * len(needs)
    assert all(list(rates) == sorted(rates, reverse=True) for rates in asked)
    assert g_search(DEPTH, lambda rates: 1.0, 1.0) == (0.0,) * 4
    assert g_search(DEPTH, lambda rates: float(min(rates) == 1), 1.0) == (1.0,) * 4


@pytest.mark.parametrize("budget", [0.25, 0.3, 0.6])
def test_g_search_gives_up_as_little_as_the_budget_asks(budget: float) -> None:
    def measure(rates: Rates) -> float:
        return 1.0 - 0.5 * (1 - DEPTH.average(rates)) ** 2

    found = g_search_within(DEPTH, measure, 1.0, budget)
    assert DEPTH.average(found.rates) <= budget
    assert measure(found.rates) >= 1.0 - found.parameter
    # A schedule with a slightly smaller loss would not fit.
    assert DEPTH.average(g_search(DEPTH, measure, 1.0 - 0.6 * found.parameter)) > budget


def test_p_sigmoid_finds_the_best_steepness() -> None:
    """Also between the values of its grid; of equals it takes the flatter one."""

    def like(wanted: float) -> Any:
        goal = np.array(sigmoid_rates(DEPTH, wanted, 0.4))
        return lambda rates: 1 - float(np.abs(np.array(rates) - goal).max())

    assert p_sigmoid(DEPTH, like(10.0), 0.4).parameter == 10.0
    assert p_sigmoid(DEPTH, like(0.0), 0.4).parameter == 0.0
    assert p_sigmoid(DEPTH, lambda rates: 1.0, 0.4).parameter == 0.0


def test_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    memory = Memory(path, {"a": 1})
    memory.keep((1.0, 0.5), Score(3, 4, 0.7))
    assert Memory(path, {"a": 1}).scores == {(1.0, 0.5): Score(3, 4, 0.7)}
    assert Memory(path, {"a": 2}).scores == {}
    path.write_text(path.read_text()[:-4])
    assert Memory(path, {"a": 1}).resumed == 0


def test_questions_of_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "question": "What?", "answer": "a Cat"},
        {"image": "a.png", "question": "Why?", "answer": ["x", "y"]},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = read_questions(tmp_path)
    assert first.is_right(" A cat. ")
    assert not first.is_right("a dog")
    assert second.is_right("y")
    before = fingerprint((first, second))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    assert fingerprint(read_questions(tmp_path)) != before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("\n \n", "is empty"),
        ("{", "no question"),
        ("[]", "no question"),
        ('{"image": "a.png", "question": "?"}', "no question"),
        ('{"image": "a.png", "question": "?", "answer": []}', "no question"),
        ('{"image": "a.png", "question": "?", "answer": [3]}', "no question"),
        ('{"image": "b.png", "question": "?", "answer": "x"}', "missing"),
    ],
)
def test_no_calibration_set(tmp_path: Path, text: str | None, says: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    if text is not None:
        (tmp_path / "questions.jsonl").write_text(text)
    with pytest.raises(UsageError, match=says):
        read_questions(tmp_path)


def test_nothing_to_ask() -> None:
    with pytest.raises(UsageError, match="is empty"):
        demo_questions(0)
    with pytest.raises(UsageError, match="no questions for this model"):
        require_data(demo=False, data=None)
    require_data(demo=True, data=None)


@pytest.mark.parametrize(
    ("rule", "given", "says"),
    [
        ("x-search", {"budget": 0.5}, "no search"),
        ("p-sigmoid", {}, "needs a budget"),
        ("p-sigmoid", {"budget": 0.5, "loss": 0.1}, "takes no loss"),
        ("g-search", {}, "a budget or a loss"),
        ("g-search", {"budget": 0.5, "loss": 0.1}, "not both"),
        ("g-search", {"loss": 1.0}, "out of range"),
        ("p-sigmoid", {"budget": 0.1}, "fits into"),
        ("p-sigmoid", {"budget": 0.0}, "out of range"),
        ("g-search", {"loss": 0.1, "first": 6}, "outside the decoder"),
        ("g-search", {"loss": 0.1, "query": "all"}, "cannot use query"),
    ],
)
def test_refused_before_any_work(tmp_path: Path, rule: str, given: dict[str, Any], says: str) -> None:
    from foveate.tools.demo import CHECKPOINT

    with pytest.raises(UsageError, match=says):
        run.search(rule, CHECKPOINT, (), tmp_path / "s.toml", **given)
    assert not list(tmp_path.iterdir())


def test_the_schedule_says_who_ranks() -> None:
    full, flat, rates = (1.0,) * 4, (0.3,) * 4, (0.5, 0.5, 0.1, 0.0)
    scores = {full: Score(9, 10, 1.0), flat: Score(5, 10, 0.4), rates: Score(6, 10, 0.4)}
    found = Found("g-search", "m", DEPTH, rates, 0.3, flat, scores, 0.4)
    assert found.schedule().words() == [
        f"layer-rank@{k}:share={s}" for k, s in ((2, 0.5), (6, 0.1), (9, 0.0))
    ]
    assert (
        dataclasses.replace(found, query="last").schedule().words()[0] == "layer-rank@2:share=0.5,query=last"
    )
    assert [found.role(each) for each in scores] == ["all tokens", "one cut", "found"]
    assert found.to_json()["right_percent_one_cut"] == 50.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_searches_on_the_built_in_model(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rules on one bundle; the files; a second run measures nothing; budgets are the method's shares."""
    from foveate.tools.demo import CHECKPOINT

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    questions = demo_questions(2)
    path, given = tmp_path / "new" / "s.toml", {"cuts": 2, "threads": 1, "new_tokens": 6}
    found = run.search("p-sigmoid", CHECKPOINT, questions, path, budget=0.4, **given)
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "s.csv",
        "s.measured.json",
        "s.png",
        "s.toml",
    ]
    assert found.score.average == pytest.approx(0.4, abs=0.01)
    assert found.full.average == 1.0
    assert found.full.total == len(questions) == 16
    schedule = load_schedule(path)
    assert (schedule.num_layers, schedule.about["search"]["rule"]) == (6, "p-sigmoid")
    assert read_schedule(path)[0].startswith("layer-rank@1:share=0.")
    with path.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.scores)
    assert {"found", "all tokens"} <= {row["role"] for row in rows}

    again = []
    measured = run.Bench._measure
    monkeypatch.setattr(run.Bench, "_measure", lambda *a: again.append(a[1]) or measured(*a))
    said: list[str] = []
    second = run.search("p-sigmoid", CHECKPOINT, questions, path, budget=0.4, say=said.append, **given)
    assert (again, second.rates, second.scores) == ([], found.rates, found.scores)
    assert "continuing with" in said[0]

    loose = run.search("g-search", CHECKPOINT, questions, path, loss=0.9, **given)
    assert again
    assert loose.depth.average(loose.rates) < 0.4
    assert loose.score.right >= 0.1 * 16 - 1e-9

    _budgets_are_shares(next(cache.glob("foveate/search-*")), questions, loose.depth)


def _budgets_are_shares(bundle: Path, questions: tuple[Question, ...], depth: Depth) -> None:
    """The method's own rule (half of those that entered, at each cut) and the bench give the same answers."""
    from foveate.runtime.pipeline import Request, load

    pipeline = load(bundle, threads=1)
    requests = [Request(each.text, [each.image]) for each in questions]
    own = pipeline.generate_batch(requests, GenerateOptions(max_new_tokens=6))
    right = sum(q.is_right(answer.text) for q, answer in zip(questions, own, strict=True))
    memory = Memory(bundle.parent / "none.json", {})
    bench = run.Bench(pipeline, depth, questions, memory, new_tokens=6, progress=lambda *a: None)
    score = bench.score((0.5, 0.5))
    assert score.right == right
    assert score.average == pytest.approx(sum(each.report.layer_average for each in own) / len(own))
