"""`foveate bench`: what answers cost on this machine, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.runtime.errors import UsageError
from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.bench import words
    from foveate.tools.bench.schema import Result

EXAMPLES = (
    ("foveate bench demo", "the built-in model, all tokens and pruned, in turn"),
    (
        "foveate bench fp32=llava-fp32 int8=llava-int8 --budget all --budget encoder=0.22,decoder@2=0.5",
        "two precisions, unpruned and pruned, in the same rounds",
    ),
    ("foveate bench bundle --roofline", "where the time goes, beside what this machine can do at most"),
    (
        "foveate bench bundle --concurrency 1,2,4,8,16 --out results",
        "many requests at once; tables, JSON, plots",
    ),
    (
        "foveate bench bundle --against transformers,openvino-genai --checkpoint llava "
        "--rival-python openvino-genai=ov/bin/python --rival-model openvino-genai=llava-ov-int8",
        "other engines on the same weights, image and prompt, in the same rounds",
    ),
    ("foveate bench --compare old/bench.json new/bench.json", "two runs, refused if they were not alike"),
)

WHAT, HOW, RIVALS = "What is asked", "How it is measured", "Other engines"
PROMPT = "What is in this picture?"
COMMAND = "foveate bench demo"


def command(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BUNDLE...",
            help="Folders that foveate export wrote, or demo; NAME=FOLDER gives one a name for the tables.",
        ),
    ] = None,
    image: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="The picture; demo:0 to demo:999 are scenes.", rich_help_panel=WHAT
        ),
    ] = "demo",
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", metavar="TEXT", help="The question.", rich_help_panel=WHAT)
    ] = PROMPT,
    new_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens of every answer; the end-of-text token does not end it.", rich_help_panel=WHAT
        ),
    ] = 32,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AMOUNT",
            help="all, own (the methods' rules), one amount for every site (0.5, 64), or one for each "
            "(encoder=0.22,decoder@2=0.5); repeatable. [dim]\\[default: all and own][/]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="fused or segmented. [dim]\\[default: the backend's own][/]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="onnxruntime (the CPU), cuda, tensorrt-provider or tensorrt. "
            "[dim]\\[default: what each bundle was exported for][/]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="In each, every case answers once, in changing order.", rich_help_panel=HOW)
    ] = 7,
    warm_up: Annotated[
        int, typer.Option(help="Answers of each case that are not counted.", rich_help_panel=HOW)
    ] = 2,
    threads: Annotated[int, typer.Option(help="Threads of one operator.", rich_help_panel=HOW)] = 1,
    cores: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Cores to bind to, such as 1 or 0,2. [dim]\\[default: the last ones, one a thread][/]",
            rich_help_panel=HOW,
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="LEVELS",
            help="Requests at once, such as 1,2,4,8,16: speed under load.",
            rich_help_panel=HOW,
        ),
    ] = None,
    requests: Annotated[
        int,
        typer.Option(help="With --concurrency: of each client, one after the other.", rich_help_panel=HOW),
    ] = 2,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline",
            help="Trace every operator: parts, choosing and segments apart, beside ceilings measured here.",
            rich_help_panel=HOW,
        ),
    ] = False,
    clock: Annotated[
        str,
        typer.Option(
            metavar="CLOCK", help="Of tables and plots: wall or cpu; files have both.", rich_help_panel=HOW
        ),
    ] = "wall",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="transformers, openvino-genai, onnxruntime-genai; NAME:LABEL tells two of one engine apart.",
            rich_help_panel=RIVALS,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="What the bundles were exported from. [dim]\\[default: where it was then][/]",
            rich_help_panel=RIVALS,
        ),
    ] = None,
    rival_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="What a rival made of the checkpoint; repeatable.",
            rich_help_panel=RIVALS,
        ),
    ] = None,
    rival_python: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="The Python of a rival's environment; repeatable.",
            rich_help_panel=RIVALS,
        ),
    ] = None,
    rival_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KEY=VALUE,...",
            help="What only a rival knows, such as transformers=device=cuda,dtype=float16; repeatable.",
            rich_help_panel=RIVALS,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Leave with 6 if a rival could not be measured.", rich_help_panel=RIVALS
        ),
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="FILE FILE", help="Measure nothing: set two results side by side."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTING", help="With --compare: a setting that may differ; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where bench.json and plots go; nothing is written without it."),
    ] = None,
    json_output: output.JsonFlag = False,
) -> None:
    """Measure what answers cost on this machine: time to the first token part by part, decoding, memory.

    Each bundle runs in a process of its own, bound to its cores. Every case (a bundle at a budget) answers in
    every round, in changing order, so that whatever else the machine does hits all; figures are medians and
    percentiles, ratios are taken round by round, and they are of times, never of tokens.

    Rivals of --against answer in the same rounds, with the same weights, image, prompt and number of tokens.
    One that is not there is skipped with a line that says so.
    """
    output.one_of("--clock", clock, ("wall", "cpu"))
    if compare is not None:
        if bundles:
            raise UsageError(
                "--compare measures nothing", found=" ".join(bundles), mend="leave the bundles out"
            )
        _compare(compare, allow or (), clock, json_output)
        return
    if allow:
        raise UsageError("--allow goes with --compare", mend="leave it out")
    from foveate.tools.bench import words

    asked = words.Asked(
        image=image,
        prompt=prompt,
        new_tokens=new_tokens,
        layout=layout,
        backend=backend,
        rounds=rounds,
        warm_up=warm_up,
        threads=threads,
        requests=requests,
        roofline=roofline,
        bundles=tuple(bundles or ()),
        budgets=tuple(budget or ()),
        cores=cores,
        concurrency=concurrency,
        against=against,
        checkpoint=checkpoint,
        models=tuple(rival_model or ()),
        pythons=tuple(rival_python or ()),
        options=tuple(rival_option or ()),
    )
    _measure(asked, clock, out, strict, json_output)


def _measure(asked: words.Asked, clock: str, out: Path | None, strict: bool, json_output: bool) -> None:
    from foveate.runtime.errors import MissingDependencyError
    from foveate.tools.bench.run import measure
    from foveate.tools.places import require_writable

    with output.progress(quiet=json_output) as report:
        order = asked.order(output.remark, report)
        if out is not None:
            require_writable(out)  # before hours of rounds, not behind them
        result = measure(order, report, output.remark)
    if not json_output:
        _show(result, clock)  # first: a disk that is full by now shall not take the figures, too
    written = [] if out is None else _write(result, out, clock)
    if json_output:
        output.emit({**result.model_dump(mode="json"), "files": [str(path) for path in written]})
    elif written:
        output.remark(f"wrote {', '.join(map(str, written))}")
    missing = [name for name in order.rivals if name not in {each.name for each in result.rivals}]
    if strict and missing:
        raise MissingDependencyError(
            f"not measured: {', '.join(missing)}",
            mend="the lines above say what each needs, or drop --strict",
        )


def _write(result: Result, out: Path, clock: str) -> list[Path]:
    """The document, and plots where they can be drawn. Raises `UsageError` for a folder without access."""
    from foveate.runtime.errors import MissingDependencyError
    from foveate.tools.bench import plots

    try:
        written = [result.write(out / "bench.json")]
        return [*written, *plots.draw(result, out, clock)]
    except MissingDependencyError as error:
        output.remark(f"no plots: {error}")
        return written
    except OSError as error:
        raise UsageError(f"{out} cannot be written", found=str(error.strerror or error)) from error


def _compare(paths: tuple[Path, Path], allow: Sequence[str], clock: str, json_output: bool) -> None:
    from foveate.tools.bench import compare
    from foveate.tools.bench.schema import Result

    found = compare.compare(Result.read(paths[0]), Result.read(paths[1]), allow)
    if json_output:
        output.emit(compare.to_json(found, clock))
        return
    for difference in found.differences:
        output.stdout().print(f"differs: {difference}", markup=False)
    for name in found.alone:
        output.stdout().print(f"! only in one run: {name}", style="yellow", markup=False)
    _print("Medians", compare.table(found, clock), 3)
    if found.levels:
        _print("Requests at once", compare.loads(found, clock), 2)


def _show(result: Result, clock: str) -> None:
    """The tables."""
    from foveate.tools.bench import roofline, table

    settings, out = result.settings, output.stdout()
    kind = "wall" if clock == "wall" else "processor"
    out.print(
        f"Medians of {settings.rounds} rounds in {kind} time, {settings.threads} "
        f"thread{'' if settings.threads == 1 else 's'}, {settings.new_tokens} new tokens; ratios are of "
        f"times, round by round, with their range."
    )
    _print("Time to the first token", table.first_token(result, clock), 3)
    _print("Where it goes", table.split(result, clock), 1)
    _print("Tokens after it, and the whole answer", table.decoding(result, clock), 1)
    if result.rivals:
        _print("Beside other engines", table.rivals(result, clock), 1)
    if result.levels:
        _print(f"Requests at once, per second of {kind} time", table.levels(result, clock), 1)
    if result.ceiling is not None:
        _print("Parts, as every operator was traced", roofline.table(result), 3)
        out.print(roofline.ceilings(result.ceiling))
        for case in result.cases:
            share = roofline.selection(result, case)
            if case.tokens.kept and share is not None:
                out.print(
                    f"Choosing takes {100 * share:.2f} % of the graphs' time before the first token: "
                    f"{case.subject} at {case.budget}.",
                    markup=False,
                )
    _print("Memory of a process", table.memory(result))
    _print("Cache of one request behind its prompt", table.caches(result), 1)


def _print(title: str, table: tuple[tuple[str, ...], Sequence[Sequence[str]]], numbers: int = 2) -> None:
    columns, rows = table
    output.stdout().print(output.table(title, columns, rows, numbers=range(numbers, len(columns))))
