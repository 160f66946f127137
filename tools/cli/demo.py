"""`foveate demo`: everything at once, on the built-in model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.evaluate import Evaluation
    from foveate.tools.tour import Answered

EXAMPLES = (
    ("foveate demo", "export, questions, pictures, parity, accuracy: minutes on two cores"),
    ("foveate demo --out results --json", "the same for a script"),
)

NAMES = {
    ("method", "1"): "all tokens",
    ("method", "own rule"): "pruned by the method's own rule",
    ("random", "own rule"): "as many, chosen at random",
}


def command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the bundle and the pictures go.")] = Path(
        "foveate-demo"
    ),
    scenes: Annotated[
        int, typer.Option(min=1, max=1000, help="Test scenes to measure accuracy on, 8 questions each.")
    ] = 100,
    json_output: output.JsonFlag = False,
) -> None:
    """Show the whole road on the built-in model: from its checkpoint to measured accuracy.

    Exports the built-in model, a tiny LLaVA trained on scenes of shapes and handwritten digits, with pruning
    after the encoder and inside the decoder. Asks it about the first scenes of its test set, and draws which
    patches it kept. Climbs the parity ladder. Compares its accuracy with the unpruned model and with as many
    tokens chosen at random. Exits with 5 if the ladder was not climbed.
    """
    from foveate.runtime.pipeline import load
    from foveate.tools import tour
    from foveate.tools.extras import needs

    with needs("export"):
        from foveate.tools.parity.report import print_report
        from foveate.tools.parity.verify import require_parity

    clock = tour.Clock()
    out.mkdir(parents=True, exist_ok=True)
    with clock.measure("export"), output.progress(quiet=json_output) as report:
        bundle = tour.export(out, report)
    with clock.measure("load"):
        pipeline = load(bundle)
    with clock.measure("answers"):
        answers, pictures = tour.ask(pipeline, out, _silent if json_output else _show)
    with clock.measure("parity"):
        parity = tour.verify(bundle, output.remark)
    if not json_output:
        output.stdout().print(f"[dim]pictures: {', '.join(map(str, pictures))}[/]")
        print_report(parity, output.stdout())
    with clock.measure("accuracy"), output.progress(quiet=json_output) as report:
        accuracy = tour.measure(bundle, scenes, report)
    if json_output:
        output.emit(
            {
                "bundle": str(bundle),
                "answers": [answer.to_json() for answer in answers],
                "pictures": [str(path) for path in pictures],
                "parity": parity.to_json(),
                "accuracy": accuracy.to_json(),
                "timings": clock.seconds,
            }
        )
    else:
        _compare(accuracy)
        spent = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in clock.seconds.items())
        output.stdout().print(
            f"[dim]{spent}[/]\nbundle: {bundle}   try: foveate run {bundle} --chat --image demo:5"
        )
    require_parity(parity)


def _silent(answer: Answered) -> None: ...


def _show(answer: Answered) -> None:
    from rich.text import Text

    from foveate.tools.account import summary

    verdict = ("right", "green") if answer.right else (f"it is {answer.expected}", "yellow")
    line = Text.assemble(
        (f"demo:{answer.scene}  ", "dim"), f"{answer.question} ", (answer.answer, "bold"), "  ", verdict
    )
    output.stdout().print(line)
    output.stdout().print(Text(f"        {summary(answer.generation)}", style="dim"))


def _compare(accuracy: Evaluation) -> None:
    rows = []
    for point in accuracy.points:
        low, high = point.accuracy.interval()
        rows.append(
            (
                NAMES.get((point.method, point.budget), f"{point.method} {point.budget}"),
                f"{100 * point.kept:.1f} %",
                f"{100 * point.layer_average:.1f} %",
                f"{100 * point.accuracy.share:.1f} %",
                f"{100 * low:.1f} to {100 * high:.1f}",
                f"{100 * point.two_hop.share:.1f} %",
            )
        )
    title = f"Accuracy on {accuracy.scenes} unseen scenes, {accuracy.points[0].accuracy.total} questions"
    columns = ("", "tokens left", "layer average", "right", "95 %", "right, two look-ups")
    output.stdout().print(output.table(title, columns, rows, numbers=range(1, 6)))
