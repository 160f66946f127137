"""The report: one HTML file that needs nothing else. Tables, curves, kept patches, the published order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from foveate.tools.demo_model.scenes import QUESTION_KINDS, TWO_HOP
from foveate.tools.eval import svg
from foveate.tools.eval.cells import PICTURES, Cell
from foveate.tools.eval.compare import Comparison, Outcome
from foveate.tools.eval.findings import problems, sentences
from foveate.tools.eval.ranking import TOKENS, Ranking, rank
from foveate.tools.eval.table import interval, middle, ordered, shown_cell, to_json
from foveate.tools.evaluation import OWN_RULE

_STYLE = Path(__file__).with_name("report.css")
_PANELS = (
    ("Before the decoder", ("encoder",)),
    ("Inside the decoder", ("decoder",)),
    ("At both sites, and methods that leave out arithmetic", ("both", "layers")),
)
_MEASURES: tuple[tuple[str, Callable[[Comparison, Cell], float]], ...] = (
    ("visual tokens, mean over the decoder's layers, % of all", lambda found, cell: cell.point.layer_average),
    ("operations of the prefill, % of the unpruned model's", lambda found, cell: _work(found, cell)),
)


def report(found: Comparison) -> str:
    """The whole page."""
    sections = [
        _summary(found),
        _section("Accuracy at each budget", _NOTE_MATRIX, _matrix(found)),
        _section("Accuracy against what is left", _NOTE_CHARTS, _charts(found)),
        _section("What is left of the picture", _NOTE_LOOKS, _looks(found)),
        _section("By kind of question", "", _kinds(found)),
        _section("Our order beside the published one", _NOTE_RANKING, _rankings(found)),
        _section("Every point", _NOTE_POINTS, _points(found)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Foveate: methods compared</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


_NOTE_MATRIX = (
    "Right answers in percent, with half the width of Wilson's 95 % interval behind; small, the visual "
    "tokens that the decoder's layers see on average. A budget is what is left behind the last cut; the "
    "k-th of m cuts leaves budget^(k/m) of all visual tokens. Methods that no budget changes have their own "
    "rule only. FLOPs and TTFT are shares of the unpruned model's. More is under the mouse."
)
_NOTE_CHARTS = (
    "Stars are the methods' own rules; grey are the baselines. Names and figures appear under the mouse."
)
_NOTE_LOOKS = (
    "Patches that are not behind the last cut are veiled. A method that merges writes a merged token into "
    "the slot of its centre or target; groups that have no place (VisToG's, QueCC's) stand in slots that "
    "say nothing."
)
_NOTE_POINTS = (
    "Counted are convolutions, matrix products and attention in the exported graphs, the choice of tokens "
    "included; the formula has all but that choice. Change is against all tokens on the same scenes, with "
    "its 95 % range over resampled scenes. TTFT: medians, pruned and unpruned in turn; this model is so "
    "small that calls cost more than arithmetic, so it says little about large ones."
)
_NOTE_RANKING = (
    f"Published means over benchmarks, LLaVA-1.5-7B with {TOKENS} visual tokens, in percent of the unpruned "
    "model; ours is the share of the unpruned built-in model's accuracy at the same share of tokens behind "
    "the last cut. SparseVLM's and PyramidDrop's published budgets are means over layers, so ours favours "
    "the decoder's methods."
)


def _summary(found: Comparison) -> str:
    exam, budgets = found.exam, ", ".join(f"{100 * each:g} %" for each in found.budgets)
    head = (
        "<h1>Methods compared</h1>"
        f"<p>{len(found.outcomes)} plans on the built-in model (LLaVA, {found.tokens} visual tokens, "
        f"{found.full.point.accuracy.total} questions about {len(exam.scenes)} unseen scenes), through the "
        f"exported graphs. Budgets: {budgets} of the visual tokens. With all tokens "
        f"<b>{_percent(found.full.share)} %</b> are right ({interval(found.full.point.accuracy)}).</p>"
    )
    trouble = problems(found)
    box = f'<div class="trouble"><b>Missing or odd</b>{_list(trouble)}</div>' if trouble else ""
    return head + box + _list(sentences(found))


def _matrix(found: Comparison) -> str:
    ratio = middle(found.budgets)
    last = "" if ratio is None else f" at {100 * ratio:g} %"
    names = ["plan", "method", "kind", "site", "own rule"]
    names += [f"{100 * each:g} %" for each in found.budgets] + [f"FLOPs{last}", f"TTFT{last}"]
    rows = []
    for outcome in ordered(found):
        cell = shown_cell(outcome, found.budgets)
        cells = [
            _accuracy(found, outcome.own),
            *(_accuracy(found, outcome.at(each)) for each in found.budgets),
        ]
        if cell is None:
            cells = [f'<td class="missing" colspan="{len(cells)}">{escape(outcome.problem)}</td>']
        rows.append([*_about(outcome), *cells, *_savings(found, cell)])
    return _table(names, rows)


def _about(outcome: Outcome) -> list[str]:
    row = outcome.row
    return [f'<th scope="row">{escape(row.name)}</th>', *map(_td, (row.title, row.kind, row.site))]


def _accuracy(found: Comparison, cell: Cell | None) -> str:
    """A cell whose ground is the darker the less is lost."""
    if cell is None:
        return "<td></td>"
    tally = cell.point.accuracy
    low, high = tally.interval()
    worth = max(0.0, min(1.0, cell.share / max(found.full.share, 1e-9)))
    layers = f"{100 * cell.point.layer_average:.0f} %"
    return (
        f'<td class="figure" style="--worth:{max(0.0, 2 * worth - 1):.3f}" title="{interval(tally)} %, '
        f'{100 * cell.point.kept:.1f} % behind the last cut">{_percent(cell.share)}'
        f"<i> ±{50 * (high - low):.1f}</i><small>{layers}</small></td>"
    )


def _savings(found: Comparison, cell: Cell | None) -> list[str]:
    if cell is None:
        return ["<td></td>", "<td></td>"]
    return [_td(f"{100 * _work(found, cell):.0f} %"), _td(f"{cell.speed.ratio:.2f}" if cell.speed else "")]


def _charts(found: Comparison) -> str:
    drawn = []
    for title, sites in _PANELS:
        outcomes = [each for each in ordered(found) if each.row.site in sites and each.cells]
        if outcomes:
            drawn += [
                svg.chart(title, axis, [_curve(found, each, measure) for each in outcomes])
                for axis, measure in _MEASURES
            ]
    return f'<div class="charts">{"".join(drawn)}</div>'


def _curve(found: Comparison, outcome: Outcome, measure: Callable[[Comparison, Cell], float]) -> svg.Curve:
    dots = [
        svg.Dot(
            measure(found, cell),
            cell.share,
            *cell.point.accuracy.interval(),
            f"{cell.budget}, {_percent(cell.share)} % right",
            star=cell.budget == OWN_RULE,
        )
        for cell in outcome.cells
    ]
    if not (outcome.own and outcome.own.fixed):
        full = found.full
        dots.append(svg.Dot(1.0, full.share, *full.point.accuracy.interval(), "all tokens"))
    return svg.Curve(outcome.row.name, tuple(dots), baseline=outcome.row.kind == "baseline")


def _looks(found: Comparison) -> str:
    scenes = found.exam.scenes[:PICTURES]
    asked = found.full.looks
    head = ["plan", *(f"{look.question}" for look in asked)]
    rows = []
    for outcome in ordered(found):
        cell = shown_cell(outcome, found.budgets)
        if cell is not None:
            title = f"<th scope='row'>{escape(outcome.row.name)}<small>{escape(cell.budget)}</small></th>"
            rows.append([title, *(_look(found, cell, number) for number in range(len(cell.looks)))])
    everything = [
        "<th scope='row'>all tokens</th>",
        *(_look(found, found.full, i) for i in range(len(asked))),
    ]
    return svg.scene_symbols([scene.image for scene in scenes]) + _table(head, [everything, *rows], "looks")


def _look(found: Comparison, cell: Cell, number: int) -> str:
    look = cell.looks[number]
    label = f"{len(look.kept)} of {found.tokens} patches"
    verdict = "right" if look.right else "wrong"
    return (
        f"<td>{svg.kept_patches(look.scene, look.kept, found.tokens, label)}"
        f'<span class="{verdict}">{escape(look.answer) or "(nothing)"}</span></td>'
    )


def _kinds(found: Comparison) -> str:
    ratio = middle(found.budgets)
    names = [
        "plan",
        "budget",
        *(kind.replace("_", " ") for kind in QUESTION_KINDS),
        "one look-up",
        "two look-ups",
    ]
    rows = [["<th scope='row'>none</th>", _td("1"), *_by_kind(found.full)]]
    for outcome in ordered(found):
        cell = shown_cell(outcome, found.budgets)
        if cell is not None:
            rows.append([_about(outcome)[0], _td(cell.budget), *_by_kind(cell)])
    where = (
        "" if ratio is None else f"<p>At {100 * ratio:g} %, or by the own rule; right answers in percent.</p>"
    )
    return where + _table(names, rows)


def _by_kind(cell: Cell) -> Iterable[str]:
    kinds = cell.point.kinds
    for kind in QUESTION_KINDS:
        tally = kinds.get(kind)
        yield (
            "<td></td>" if tally is None else f'<td title="{interval(tally)} %">{_percent(tally.share)}</td>'
        )
    for two in (False, True):
        chosen = [tally for kind, tally in kinds.items() if (kind in TWO_HOP) == two]
        yield _td(_percent(sum(t.right for t in chosen) / max(1, sum(t.total for t in chosen))))


def _rankings(found: Comparison) -> str:
    rankings = rank(found)
    if not rankings:
        return "<p>Fewer than three of the rows have published figures at these budgets.</p>"
    return "".join(map(_ranking, rankings))


def _ranking(ranking: Ranking) -> str:
    rho = ranking.rho
    words = f"rank correlation {rho.value:+.2f} ({rho.low:+.2f} to {rho.high:+.2f} over resampled scenes)"
    if ranking.before is not None:
        words += f"; {ranking.before.value:+.2f} among those that cut before the decoder"
    rows = [
        [
            f"<th scope='row'>{escape(each.row)}</th>",
            *map(
                _td,
                (each.published_place, each.place, f"{each.published:.1f}", f"{each.ours:.1f}", each.source),
            ),
        ]
        for each in ranking.entries
    ]
    title = f"<h3>{ranking.tokens} of {TOKENS} ({ranking.ours} here): {words}</h3>"
    return title + _table(["plan", "published place", "our place", "published %", "ours %", "source"], rows)


def _points(found: Comparison) -> str:
    rows = [_point(cell) for row in to_json(found)["rows"] for cell in row["cells"]]
    names = ["plan", "budget", "kept by site", "kept %", "layers %", "right %", "95 %", "change"]
    names += ["MFLOPs", "formula", "TTFT ms", "TTFT ratio"]
    return f"<details><summary>all of them</summary>{_table(names, rows)}</details>"


def _point(cell: Mapping[str, Any]) -> list[str]:
    change = f"{cell['change_low']:+.1f} to {cell['change_high']:+.1f}"
    values = (
        cell["budget"],
        cell["kept_by_site"],
        f"{100 * cell['kept']:.1f}",
        f"{100 * cell['layer_average']:.1f}",
        f"{cell['right_percent']:.1f}",
        f"{cell['low']:.1f} to {cell['high']:.1f}",
        f"{cell['change']:+.1f} ({change})",
        f"{cell['prefill_mflops']:.1f}",
        f"{cell['formula_mflops']:.1f}",
        cell["ttft_ms"],
        cell["ttft_ratio"],
    )
    return [f"<th scope='row'>{escape(cell['plan'])}</th>", *map(_td, values)]


def _section(title: str, note: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{f'<p class=note>{escape(note)}</p>' if note else ''}{body}"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="{kind}">{inside}</table></div>'


def _td(value: object) -> str:
    return f"<td>{escape(str(value))}</td>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _work(found: Comparison, cell: Cell) -> float:
    return cell.work.total / found.full.work.total


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
