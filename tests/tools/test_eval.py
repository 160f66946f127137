"""The table of all methods, without a model: which rows, what figures mean, what is written."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence

import pytest

from foveate.pruning.registry import method_names
from foveate.runtime.errors import UsageError
from foveate.tools.eval import findings, rows
from foveate.tools.eval.cells import Cell, Look
from foveate.tools.eval.compare import Comparison, Outcome
from foveate.tools.eval.ranking import BUDGETS, TOKENS, rank, wanted_ratios
from foveate.tools.eval.report import report
from foveate.tools.eval.speed import Speed
from foveate.tools.eval.statistics import agreement, difference, spearman
from foveate.tools.eval.table import cells_csv, ordered, short_lines, to_json
from foveate.tools.eval.work import Work, flops_of
from foveate.tools.evaluate import Exam
from foveate.tools.evaluation import OWN_RULE, Point, Tally
from foveate.tools.flops import DecoderSizes, Sizes, VisionSizes, prefill

LAYERS = 6
SCENES = 20


def test_every_method_has_a_row() -> None:
    found = rows.all_rows(LAYERS)
    assert {name for row in found for name in row.methods} == set(method_names())
    assert len({row.name for row in found}) == len(found)
    kinds = [row.kind for row in found]
    assert kinds == sorted(kinds, key=rows._KINDS.index)
    assert {"random", "random@2", "random random@2", rows.DEFAULT} <= {row.name for row in found}


def test_plans_from_the_command_line() -> None:
    found = rows.parse_rows(["cls-knee:min_keep=4,knee=iqr,random random@2, default", "vtc-cls,none"], LAYERS)
    assert [row.words for row in found] == [
        ("cls-knee:min_keep=4,knee=iqr",),
        ("random", "random@2"),
        rows.METHODS,
        ("vtc-cls",),
    ]
    assert [row.site for row in found] == ["encoder", "both", "both", "encoder"]
    assert found[1].kind == "baseline"
    with pytest.raises(UsageError, match="vtc-cls"):
        rows.parse_rows(["vtc-clss"], LAYERS)
    with pytest.raises(UsageError, match="no methods"):
        rows.parse_rows([","], LAYERS)


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [2, 3, 4, 5]) == 1
    assert spearman([1, 2, 3], [9, 5, 1]) == -1
    # By hand: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert spearman([0.1, 0.5, 0.5, 0.9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1, 1], [1, 2, 3]) == 0
    rights = [[8] * 30, [5, 6] * 15, [2, 3] * 15]
    assert agreement([99.0, 97.0, 90.0], rights).low == 1
    assert agreement([90.0, 97.0, 99.0], rights).value == -1


def test_a_difference_is_of_pairs() -> None:
    """Scenes are of very different difficulty, and one method is better by one question in each."""
    hard = [0, 7] * 20
    found = difference([right + 1 for right in hard], hard, 8 * 40)
    assert (found.value, found.low, found.high) == (pytest.approx(1 / 8),) * 3
    assert found.certain
    assert not difference(hard, hard[::-1], 8 * 40).certain


def test_flops_of_nodes() -> None:
    def node(name: str, ins: Sequence[Sequence[int]], out: Sequence[int]) -> float:
        typed = [{"float": list(shape)} for shape in ins]
        args = {"op_name": name, "input_type_shape": typed, "output_type_shape": [{"float": list(out)}]}
        return flops_of({"args": args})

    assert node("MatMul", [(1, 5, 8)], (1, 5, 3)) == 2 * 5 * 8 * 3
    assert node("Conv", [(1, 3, 8, 8), (4, 3, 2, 2)], (1, 4, 4, 4)) == 2 * 16 * 4 * 12
    assert node("Attention", [(1, 4, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8)], (1, 4, 5, 8)) == 4 * 4 * 5 * 7 * 8
    assert node("GroupQueryAttention", [(1, 5, 32), (1, 5, 16), (1, 5, 16)], (1, 5, 32)) == 4 * 5 * 5 * 32
    assert node("Softmax", [(1, 5)], (1, 5)) == 0


def test_flops_by_formula() -> None:
    sizes = Sizes(VisionSizes(1, 2, 4, 4, 3), DecoderSizes(2, 2, 2, 1, 4, 10))
    found = prefill(sizes, entered=4, present=(4, 2), text=1)
    assert found.vision == 2 * 4 * 3 * 2 + 2 * 5 * (4 * 4 + 2 * 2 * 4) + 4 * 25 * 2
    assert found.connector == 2 * 4 * 8
    layers = [2 * s * (2 * 6 + 3 * 2 * 4) + 4 * s * s * 2 for s in (5, 3)]
    assert found.decoder == sum(layers) + 2 * 2 * 10
    assert found.total == found.vision + found.connector + found.decoder


@pytest.fixture(scope="module")
def found() -> Comparison:
    """A made-up comparison: vtc-cls, visionzip, divprune, fastv in this order, one row missing."""
    made = {
        "default": {OWN_RULE: 6, "0.5": 8, "0.25": 6, "0.11": 4},
        "random": {OWN_RULE: 3, "0.5": 3, "0.25": 2, "0.11": 1},
        "vtc-cls": {OWN_RULE: 7, "0.5": 8, "0.25": 7, "0.11": 5, "0.222": 6},
        "visionzip": {OWN_RULE: 6, "0.5": 7, "0.25": 6, "0.11": 4, "0.222": 5, "0.333": 6},
        "divprune": {OWN_RULE: 5, "0.5": 6, "0.25": 5, "0.11": 3, "0.222": 4, "0.333": 5},
        "fastv": {OWN_RULE: 4, "0.5": 4, "0.25": 2, "0.11": 1, "0.222": 1, "0.333": 2},
        "exit": {OWN_RULE: 7},
    }
    outcomes = [
        Outcome(rows.make_row(name, LAYERS), tuple(_cell(name, b, right) for b, right in cells.items()))
        for name, cells in made.items()
    ]
    outcomes.append(Outcome(rows.make_row("setok", LAYERS), problem="no adapter: <none>"))
    return Comparison(_cell("none", "1", 8), tuple(outcomes), (0.5, 0.25, 0.11), Exam.draw(SCENES), 64, 1)


def _cell(name: str, budget: str, right: int) -> Cell:
    kept = {OWN_RULE: 0.3}.get(budget) or float(budget)
    tally = Tally(right * SCENES, 8 * SCENES)
    layers = 0.4 if name == "fastv" else kept
    point = Point(name, budget, tally, {"color": tally}, kept, layers, {"encoder": kept})
    looks = (Look(0, "What is it?", "red", True, tuple(range(int(64 * kept)))),)
    fixed = name == "exit"
    work = Work(1e6, 1e5, 2e6 * kept)
    return Cell(point, {}, True, (right,) * SCENES, looks, work, 2.9e6 * kept, Speed(0.02, 0.01, 3), fixed)


def test_cells_survive_storing(found: Comparison) -> None:
    for outcome in found.outcomes:
        for cell in outcome.cells:
            assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_findings(found: Comparison) -> None:
    half, quarter, ninth = findings.duels(found)
    assert str(half) == "At 50 % the default is the best: 100.0 %."
    assert quarter.best.row.name == "vtc-cls"
    assert quarter.gap.certain
    assert "+12.5 points" in str(ninth)
    names = [(outcome.row.name, cell.budget) for outcome, cell in findings.front(found)]
    assert names == [("vtc-cls", "0.11"), ("vtc-cls", "0.222"), ("vtc-cls", "0.25"), ("default", "0.5")]
    assert findings.lost_to_random(found) == []
    assert findings.problems(found) == ["setok: no adapter: <none>"]


def test_the_published_order(found: Comparison) -> None:
    assert wanted_ratios("fastv", (0.5, 0.25, 0.11)) == [192 / TOKENS, 128 / TOKENS]
    assert wanted_ratios("setok", (0.5,)) == []
    at = {each.tokens: each for each in rank(found)}
    assert tuple(at) == BUDGETS
    assert [entry.row for entry in at[64].entries] == ["divprune", "visionzip", "vtc-cls", "fastv"]
    assert [entry.place for entry in at[64].entries] == [3, 2, 1, 4]
    assert at[64].rho.value == pytest.approx(0.2)
    assert at[64].before is not None
    assert at[64].before.value == -1
    assert at[64].ours == 7
    # vtc-cls has no published figure there: three methods, in our order.
    assert at[192].rho.value == 1
    assert at[192].before is None


def test_the_files(found: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(cells_csv(found))))
    assert len(lines) == 2 + sum(len(outcome.cells) for outcome in found.outcomes)
    assert lines[0]["plan"] == "none"
    by_plan = {(line["plan"], line["budget"]): line for line in lines}
    assert by_plan["vtc-cls", "0.25"]["right_percent"] == "87.5"
    assert by_plan["vtc-cls", "0.25"]["ttft_ratio"] == "0.5"
    assert by_plan["setok", ""]["problem"] == "no adapter: <none>"
    assert json.loads(json.dumps(to_json(found)))["rows"][0]["name"] in ("vtc-cls", "exit")
    columns, shown = short_lines(found)
    assert all(len(row) == len(columns) for row in shown)
    assert [outcome.row.name for outcome in ordered(found)][-1] == "setok"


def test_the_report_needs_nothing_else(found: Comparison) -> None:
    page = report(found)
    assert page == report(found)
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|<script|@import""", page)
    assert "no adapter: &lt;none&gt;" in page
    for words in ("vtc-cls", "Published means", "<svg", "87.5", "of 64 patches"):
        assert words in page
    assert page.count("<table") == page.count("</table>")
