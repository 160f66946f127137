"""`foveate eval`: accuracy against budget, of one bundle next to random pruning or of all methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.eval.compare import Comparison
    from foveate.tools.eval.run import Order
    from foveate.tools.evaluation import Evaluation, Point

EXAMPLES = (
    ("foveate eval demo --methods all", "every method at every budget: a table, a CSV, a report.html"),
    ('foveate eval demo --methods vtc-cls,divprune,"aim-merge aim-rank"', "some plans beside one another"),
    ("foveate eval demo --budgets 1.0,0.5,0.25,0.1", "the demo's bundle and random pruning, at both sites"),
    ("foveate eval demo --site encoder --scenes 1000", "only the encoder's cut, with narrower intervals"),
    ("foveate eval demo --out results --json", "figures on stdout; results/accuracy.png has the plot"),
)


def command(
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE", help="demo, or a bundle of the built-in model: its scenes are the test."
        ),
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLANS",
            help="Compare methods, each in a bundle of its own: all, or plans separated by commas, the cuts "
            "of one plan by blanks. default is the demo's own; a .toml is a schedule.",
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS",
            help="Kept shares of visual tokens, separated by commas. "
            "[dim]\\[default: 1.0,0.5,0.25,0.1; with --methods 1.0,0.5,0.25,0.11][/]",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            metavar="SITE",
            help="encoder, decoder or both; the other site keeps everything. [dim]\\[default: both][/]",
        ),
    ] = None,
    scenes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Test scenes, with eight questions each. [dim]\\[default: 200; with --methods 100][/]",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="LAYOUT", help="fused or segmented. [dim]\\[default: the backend's own][/]"),
    ] = None,
    backend: output.BackendOption = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of ONNX Runtime. [dim]\\[default: all; with --methods 1][/]"),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=0, help="With --methods: timed pairs of prompts for each point; 0 times none.")
    ] = 15,
    jobs: Annotated[int, typer.Option(min=1, help="With --methods: exports at the same time.")] = 2,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")] = Path("foveate-eval"),
    json_output: output.JsonFlag = False,
) -> None:
    """Measure accuracy against visual tokens kept: of a bundle and random pruning, or of all methods.

    The questions are asked through the runtime, about scenes that the model was not trained on. Each budget
    applies at each site; the method's own rule is a point of its own, and random pruning gets the same
    counts. Intervals are Wilson's, 95 %. A point that should prune and does not is an error.

    With --methods, every plan is exported once, into the cache. Of each point the table has accuracy, visual
    tokens left, operations of the prefill, and time to the first token beside the unpruned model. A run that
    was broken off goes on where it was when the command is given again.
    """
    from foveate.runtime.errors import UsageError
    from foveate.tools.demo import WORD
    from foveate.tools.extras import needs

    with needs("export"):
        if not methods:
            _one_bundle(
                bundle,
                parse_budgets(budgets or "1.0,0.5,0.25,0.1"),
                site or "both",
                scenes or 200,
                (layout, backend),
                threads,
                out,
                json_output,
            )
            return
        if bundle != WORD:
            raise UsageError(
                "methods are compared on the built-in model, each in a bundle of its own",
                found=bundle,
                wanted=WORD,
                mend="foveate eval demo --methods all",
            )
        given = {"--site": site, "--layout": layout, "--backend": backend}
        if unfit := [f"{name} {value}" for name, value in given.items() if value is not None]:
            found = unfit[0]
            raise UsageError(
                f"{found} does not go with --methods", mend="leave it out: a plan names its sites"
            )
        from foveate.tools.eval.run import BUDGETS, SCENES, Order

        ratios = tuple(parse_budgets(budgets)) if budgets else BUDGETS
        order = Order(tuple(methods), ratios, scenes or SCENES, pairs, threads or 1, jobs)
        _all_methods(order, out, json_output)


def parse_budgets(text: str) -> list[float]:
    """`1.0,0.5` as numbers. Raises UsageError."""
    from foveate.runtime.errors import UsageError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        wanted = "ratios separated by commas, such as 1.0,0.5,0.25"
        raise UsageError("the budgets are not numbers", found=repr(text), wanted=wanted) from error


def _one_bundle(
    bundle: str,
    ratios: list[float],
    site: str,
    scenes: int,
    where: tuple[str | None, str | None],
    threads: int | None,
    out: Path,
    json_output: bool,
) -> None:
    """The bundle's method beside random pruning at the same sites. `where`: layout and backend."""
    import json

    from foveate.tools import evaluate, evaluate_plot
    from foveate.tools.demo import resolve_bundle

    with output.progress(quiet=json_output) as report:
        path = resolve_bundle(bundle, say=output.remark, progress=report)
        found = evaluate.evaluate(
            path,
            ratios,
            site=site,
            scenes=scenes,
            layout=where[0],
            backend=where[1],
            threads=threads,
            progress=report,
        )
        out.mkdir(parents=True, exist_ok=True)
        evaluate_plot.plot(found, out / "accuracy.png")
        (out / "accuracy.json").write_text(json.dumps(found.to_json(), indent=2), encoding="utf-8")
    if json_output:
        output.emit({**found.to_json(), "plot": str(out / "accuracy.png")})
    else:
        _show(found)
        output.remark(f"wrote {out / 'accuracy.png'} and {out / 'accuracy.json'}")


def _all_methods(order: Order, out: Path, json_output: bool) -> None:
    """The table. Rows that broke are told at the end, when everything else is written."""
    from foveate.runtime.errors import ExportError
    from foveate.tools.eval import run, table

    with output.progress(quiet=json_output) as report:
        say = (lambda text: None) if json_output else output.remark
        found = run.compare_methods(order, out, report, say)
    written = run.write(found, out)
    if json_output:
        output.emit({**table.to_json(found), "files": [str(path) for path in written]})
    else:
        _show_table(found)
        output.remark(f"wrote {', '.join(map(str, written))}")
    broken = [each for each in found.outcomes if each.broken]
    if broken:
        raise ExportError(
            f"{len(broken)} of {len(found.outcomes)} rows could not be measured",
            found="; ".join(f"{each.row.name}: {each.problem}" for each in broken),
            mend="the rest is written; mend these and give the command again",
        )


def _show_table(found: Comparison) -> None:
    from foveate.tools.eval import findings, ranking, table

    columns, rows = table.short_lines(found)
    questions = found.full.point.accuracy.total
    title = f"Right answers in %, {questions} questions about {len(found.exam.scenes)} unseen scenes"
    if ratio := table.middle(found.budgets):
        title += f"; layers, FLOPs, TTFT: % of all tokens', at {100 * ratio:g} %"
    output.stdout().print(output.table(title, columns, rows, numbers=range(2, len(columns))))
    for line in findings.sentences(found):
        output.stdout().print(f"- {line}", markup=False)
    for each in ranking.rank(found):
        output.stdout().print(
            f"- Published order at {each.tokens} of {ranking.TOKENS} tokens, {len(each.entries)} methods: "
            f"rank correlation {each.rho.value:+.2f} ({each.rho.low:+.2f} to {each.rho.high:+.2f})."
        )
    for line in findings.problems(found):
        output.stdout().print(f"! {line}", style="yellow", markup=False)


def _show(found: Evaluation) -> None:
    """Two tables: accuracy and what was kept, then accuracy by kind of question."""
    questions = found.points[0].accuracy.total
    title = f"{found.bundle}, {found.site}: {found.scenes} scenes, {questions} questions"
    columns = ("method", "budget", "kept %", "layer average %", "right %", "95 %", "two look-ups %")
    rows = [
        (
            *_label(point),
            _percent(point.kept),
            _percent(point.layer_average),
            _percent(point.accuracy.share),
            " to ".join(_percent(bound) for bound in point.accuracy.interval()),
            _percent(point.two_hop.share),
        )
        for point in found.points
    ]
    output.stdout().print(output.table(title, columns, rows, numbers=range(2, len(columns))))
    kinds = list(found.points[0].kinds)
    by_kind = [(*_label(p), *(_percent(p.kinds[kind].share) for kind in kinds)) for p in found.points]
    names = ("method", "budget", *(kind.replace("_", " ") for kind in kinds))
    output.stdout().print(output.table("right %, by kind", names, by_kind, numbers=range(2, len(names))))


def _label(point: Point) -> tuple[str, str]:
    return ("all tokens" if point.kept >= 1 else point.method), point.budget


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
