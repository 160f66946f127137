"""`foveate demo`: everything at once, on the built-in model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.tour import Answered

EXAMPLES = (
    ("foveate demo", "export, questions, pictures, parity, accuracy: a few minutes on two cores"),
    ("foveate demo --out /tmp/demo --json", "the same for a script"),
)


def command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the bundle and the pictures go.")] = Path(
        "foveate-demo"
    ),
    json_output: output.JsonFlag = False,
) -> None:
    """Show the whole road on the built-in model: from its checkpoint to measured accuracy.

    1. Exports the built-in model, a tiny LLaVA trained on scenes of shapes and handwritten digits, with pruning
    after the encoder and inside the decoder. 2. Asks it about the first scenes of its test set. 3. Draws which
    patches it kept. 4. Climbs the parity ladder. 5. Compares its accuracy with the unpruned model and with
    random pruning at the same budget.
    """
    from foveate.runtime.pipeline import load
    from foveate.tools import tour

    clock = tour.Clock()
    out.mkdir(parents=True, exist_ok=True)
    with output.progress(quiet=json_output) as report, clock.measure("export"):
        bundle = tour.export(out, report)
    with clock.measure("load"):
        pipeline = load(bundle)
    with clock.measure("answers"):
        answers, pictures = tour.ask(pipeline, out, lambda answer: None if json_output else _show(answer))
    document: dict[str, Any] = {
        "bundle": str(bundle),
        "answers": [answer.to_json() for answer in answers],
        "pictures": [str(path) for path in pictures],
        "timings": clock.seconds,
    }
    if json_output:
        output.emit(document)


def _show(answer: Answered) -> None:
    from foveate.tools.account import summary

    out = output.stdout()
    mark = "[green]right[/]" if answer.right else f"[yellow]it is {answer.expected}[/]"
    out.print(f"[dim]demo:{answer.scene}[/] {answer.question} [bold]{answer.answer}[/]  {mark}")
    out.print(f"       [dim]{summary(answer.generation)}[/]")
