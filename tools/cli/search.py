"""`foveate search`: how many visual tokens each layer of a model's decoder needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.search.report import Found

EXAMPLES = (
    (
        "foveate search p-sigmoid --budget 0.25",
        "the built-in model: a quarter of the tokens, mean over layers",
    ),
    ("foveate search g-search --loss 0.01", "the fewest tokens that cost at most one point"),
    (
        "foveate search p-sigmoid ./llava-1.5-7b-hf --data my-questions --budget 0.25 -o llava.toml",
        "another model, by questions of your own",
    ),
    ("foveate search g-search --budget 0.4 --cuts 3 --json", "three cuts at most; figures on stdout"),
)


def command(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="g-search or p-sigmoid.")],
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face folder, or demo.")
    ] = "demo",
    schedule: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The schedule; its table and picture stand beside it."
        ),
    ] = Path("schedule.toml"),
    budget: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Visual tokens kept, mean over all layers. p-sigmoid needs one."),
    ] = None,
    loss: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="g-search: accuracy that may be lost, in place of a budget."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The calibration set: questions.jsonl with an image, a question and an answer on each line. "
            "The built-in model has its own scenes.",
        ),
    ] = None,
    scenes: Annotated[
        int, typer.Option(help="Validation scenes of the built-in model, eight questions each.")
    ] = 60,
    cuts: Annotated[int, typer.Option(min=1, help="At most so many places, evenly over the depth.")] = 5,
    first: Annotated[
        int | None,
        typer.Option(
            metavar="LAYER",
            help="Layers before the first place. [dim]\\[default: 2, or 1 in decoders of fewer than 16][/]",
        ),
    ] = None,
    query: Annotated[
        str,
        typer.Option(metavar="ROWS", help="Who ranks: text (all behind the image) or last (its last token)."),
    ] = "text",
    new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens an answer.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")] = None,
    json_output: output.JsonFlag = False,
) -> None:
    """Search how many visual tokens each layer of the decoder needs, and write a schedule.

    G-Search goes from shallow to deep and finds the fewest tokens that keep the answers; P-Sigmoid draws the
    rates on a sigmoid over the depth, within a budget. Every candidate runs on one bundle, its budgets as
    inputs. A search that was interrupted continues where it stood.
    """
    from foveate.tools.demo import WORD, resolve_checkpoint
    from foveate.tools.extras import needs

    output.one_of("--query", query, ("text", "last"))
    source = resolve_checkpoint(checkpoint)
    with needs("export"), output.progress(quiet=json_output) as report:
        from foveate.tools.search.questions import demo_questions, read_questions, require_data
        from foveate.tools.search.run import search

        require_data(checkpoint == WORD, data)
        found = search(
            rule,
            source,
            demo_questions(scenes) if data is None else read_questions(data),
            schedule,
            name=checkpoint if checkpoint == WORD else source.name,
            budget=budget,
            loss=loss,
            cuts=cuts,
            first=first,
            query=query,
            new_tokens=new_tokens,
            threads=threads,
            progress=report,
            say=output.remark,
        )
    if json_output:
        output.emit({**found.to_json(), "schedule": str(schedule)})
    else:
        _show(found, schedule)


def _show(found: Found, schedule: Path) -> None:
    """A line for each layer average worth comparing, then where it is written."""
    rows = []
    for name, rates in (("all tokens", None), ("one cut", found.flat), (found.rule, found.rates)):
        score = found.full if rates is None else found.scores[rates]
        low, high = score.tally.interval()
        cuts = (
            " ".join(f"@{layer}:{rate:g}" for layer, rate in found.depth.cuts(rates or ())) if rates else ""
        )
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        rows.append((name, f"{100 * score.average:.1f}", f"{100 * score.tally.share:.1f}", interval, cuts))
    title = f"{found.model}: {found.full.total} questions, {len(found.scores)} schedules measured"
    columns = ("schedule", "layer average %", "right %", "95 %", "share of the tokens from that layer on")
    output.stdout().print(output.table(title, columns, rows, numbers=(1, 2)))
    beside = f"{schedule.with_suffix('.csv').name} and {schedule.with_suffix('.png').name}"
    output.remark(f"wrote {schedule}, beside it {beside}")
    output.remark(f"next: foveate export CHECKPOINT --schedule {schedule} -o bundle")
