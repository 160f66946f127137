"""`foveate eval`: accuracy against budget, next to random pruning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.evaluation import Evaluation, Point

EXAMPLES = (
    ("foveate eval demo --budgets 1.0,0.5,0.25,0.1", "the method and random pruning, at both sites"),
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
    budgets: Annotated[
        str,
        typer.Option(metavar="RATIOS", help="Kept share of visual tokens at each site, separated by commas."),
    ] = "1.0,0.5,0.25,0.1",
    site: Annotated[
        str, typer.Option(metavar="SITE", help="encoder, decoder or both. The other site keeps everything.")
    ] = "both",
    scenes: Annotated[int, typer.Option(min=1, help="Test scenes, with eight questions each.")] = 200,
    layout: Annotated[str, typer.Option(metavar="LAYOUT", help="fused or segmented.")] = "fused",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where accuracy.png and accuracy.json go.")] = Path(
        "foveate-eval"
    ),
    json_output: output.JsonFlag = False,
) -> None:
    """Measure accuracy against visual tokens kept, for the bundle's method and for random pruning.

    The questions are asked through the runtime, about scenes that the model was not trained on. Each budget
    applies at each site; the method's own rule is a point of its own, and random pruning gets the same
    counts. Intervals are Wilson's, 95 %. A point that should prune and does not is an error.
    """
    import json

    from foveate.tools.demo import resolve_bundle
    from foveate.tools.extras import needs

    ratios = parse_budgets(budgets)
    with needs("export"), output.progress(quiet=json_output) as report:
        from foveate.tools import evaluate, evaluate_plot

        path = resolve_bundle(bundle, say=output.remark, progress=report)
        found = evaluate.evaluate(
            path, ratios, site=site, scenes=scenes, layout=layout, threads=threads, progress=report
        )
        out.mkdir(parents=True, exist_ok=True)
        evaluate_plot.plot(found, out / "accuracy.png")
        (out / "accuracy.json").write_text(json.dumps(found.to_json(), indent=2), encoding="utf-8")
    if json_output:
        output.emit({**found.to_json(), "plot": str(out / "accuracy.png")})
    else:
        _show(found)
        output.remark(f"wrote {out / 'accuracy.png'} and {out / 'accuracy.json'}")


def parse_budgets(text: str) -> list[float]:
    """`1.0,0.5` as numbers. Raises UsageError."""
    from foveate.runtime.errors import UsageError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        wanted = "ratios separated by commas, such as 1.0,0.5,0.25"
        raise UsageError("the budgets are not numbers", found=repr(text), wanted=wanted) from error


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
