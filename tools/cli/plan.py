"""`foveate plan`: how many visual tokens, and how large a model, a cost should buy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.scaling_law import Choice, Law

EXAMPLES = (
    (
        "foveate plan --share 0.25",
        "a quarter of what a 7B model with 576 tokens costs: which size, how many tokens",
    ),
    ("foveate plan --sizes 7 --text 0", "one model; the text is cached, so only visual tokens cost"),
    ("foveate plan --task reading", "text in pictures: there tokens count for more than parameters"),
)

DEFAULT_SIZES = "0.5,1.8,4,7,14"
TRIED = (0.5, 14.0)  # billions: what the paper fitted, and checked the fit on
ROWS = (1, 4, 9, 16, 36, 64, 144, 288, 576)


def command(
    share: Annotated[
        float, typer.Option(metavar="SHARE", help="What may be spent, as a share of the reference's cost.")
    ] = 1.0,
    reference: Annotated[
        str,
        typer.Option(metavar="SIZE@TOKENS", help="Billions of parameters, and visual tokens of a picture."),
    ] = "7@576",
    text: Annotated[
        int, typer.Option(min=0, metavar="N", help="Text tokens of a prompt that are not cached.")
    ] = 50,
    sizes: Annotated[
        str,
        typer.Option(metavar="SIZES", help="Language models to choose from, billions, separated by commas."),
    ] = DEFAULT_SIZES,
    task: Annotated[
        str, typer.Option(metavar="TASK", help="understanding, or reading (text in pictures).")
    ] = "understanding",
    json_output: output.JsonFlag = False,
) -> None:
    """Plan a budget by the scaling law of arXiv 2411.03312: visual tokens against parameters.

    The law speaks of models that were trained with so many tokens, on averages over benchmarks: use it to
    choose where to look, then measure with [cyan]foveate eval[/].
    """
    from foveate.tools import scaling_law

    output.one_of("--task", task, tuple(scaling_law.LAWS))
    law = scaling_law.LAWS[task]
    billions, tokens = _reference(reference)
    known = _sizes(sizes)
    if not 0 < share <= 1000:
        raise _refusal("the share of the cost is out of range", str(share), "above 0, such as 0.25")
    cost = share * billions * (text + tokens)
    found = scaling_law.choices(law, cost, text, known, limit=tokens)
    if not found:
        least = min(known) * (text + 1) / (billions * (text + tokens))
        raise _refusal(
            "no model of these sizes could take one visual token", f"share {share}", f"{least:.3g} or more"
        )
    counts = sorted({n for n in ROWS if n < tokens} | {tokens})
    curve = scaling_law.curve(law, billions, counts, text)
    document = _document(law, task, text, cost, tokens, found, curve)
    if json_output:
        output.emit(document)
    else:
        _show(document, task, billions, tokens, text, share)
    outside = [size for size in known if not TRIED[0] <= size <= TRIED[1]]
    if outside:
        output.remark("beyond what the law was fitted and checked on (0.5 to 14 billion): " + _words(outside))
    if task == "reading":
        output.remark(
            "reading: our rough refit of the authors' second table; trust its direction, not its figures"
        )


def _document(
    law: Law,
    task: str,
    text: int,
    cost: float,
    most: int,
    found: tuple[Choice, ...],
    curve: tuple[Choice, ...],
) -> dict[str, object]:
    from foveate.tools.scaling_law import best_tokens, parameters_like

    best = best_tokens(law, text)
    full = curve[-1]
    return {
        "law": {"task": task, "alpha": law.alpha, "beta": law.beta, "scale": law.scale, "floor": law.floor},
        "text_tokens": text,
        "cost": cost,
        "best_tokens": None if best == float("inf") else best,
        "choices": [_row(each, most, full.cost) for each in found],
        "reference": [
            {
                **_row(each, most, full.cost),
                "as_good_as": parameters_like(law, each.billions, each.tokens, most),
            }
            for each in curve
        ],
    }


def _row(choice: Choice, most: int, full: float) -> dict[str, float]:
    return {
        "billions": choice.billions,
        "visual_tokens": choice.tokens,
        "keep_ratio": choice.tokens / most,
        "cost_share": choice.cost / full,
        "error": choice.error,
    }


def _show(
    document: dict[str, object], task: str, billions: float, tokens: int, text: int, share: float
) -> None:
    out = output.stdout()
    columns = ("billions", "visual tokens", "kept %", "cost %", "predicted error %")
    for title, key, last in (
        (
            f"What {100 * share:g} % of {billions:g}B with {tokens} tokens buys, {text} text tokens",
            "choices",
            "",
        ),
        (f"The {billions:g}B model with fewer tokens", "reference", f"as good as, with {tokens} tokens"),
    ):
        rows = document[key]
        assert isinstance(rows, list)
        cells = [
            (
                *(f"{row['billions']:g}", row["visual_tokens"], f"{100 * row['keep_ratio']:.1f}"),
                *(f"{100 * row['cost_share']:.1f}", f"{100 * row['error']:.2f}"),
                *((_size(row["as_good_as"]),) if last else ()),
            )
            for row in rows
        ]
        names = (*columns, *((last,) if last else ()))
        out.print(output.table(title, names, cells, numbers=range(len(names))))
    best = document["best_tokens"]
    if best is None:
        out.print(f"{task}: tokens count for as much as parameters or more; use as many as you can afford")
    else:
        out.print(f"sizes being free, {text} text tokens go best with {best:.0f} visual tokens")


def _size(billions: float) -> str:
    """Below a tenth of a billion the law says nothing."""
    return f"{billions:.2g}B" if billions >= 0.1 else "below 0.1B"


def _reference(words: str) -> tuple[float, int]:
    size, at, tokens = words.partition("@")
    try:
        billions, count = float(size), int(tokens)
    except ValueError:
        billions, count = 0.0, 0
    if not at or not 0 < billions < 1e6 or not 1 <= count <= 1_000_000:
        raise _refusal("the reference cannot be read", words, "SIZE@TOKENS, such as 7@576")
    return billions, count


def _sizes(words: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(word) for word in words.split(",") if word.strip()}))
    except ValueError:
        found = ()
    if not found or not all(0 < size < 1e6 for size in found):
        raise _refusal("the sizes cannot be read", repr(words), "billions separated by commas, such as 1.8,7")
    return found


def _refusal(what: str, found: str, wanted: str) -> Exception:
    from foveate.runtime.errors import UsageError

    return UsageError(what, found=found, wanted=wanted)


def _words(sizes: list[float]) -> str:
    return ", ".join(f"{size:g}" for size in sizes)
