"""What every verb prints through: stdout for results, stderr for the rest. Imports nothing heavy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.runtime.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.table import Table

# A list of numbers as `json` writes it, one a line; strings cannot match, their line ends are escaped.
_NUMBERS = re.compile(r"\[\s+-?\d[^\[\]\"]*\]")

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and everything else on stderr.")
]

BackendOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="onnxruntime (on the CPU), cuda, tensorrt-provider or tensorrt. "
        "[dim]\\[default: what the bundle was exported for][/]",
    ),
]


@cache
def stdout() -> Console:
    """The console for results that a person reads."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


@cache
def stderr() -> Console:
    """The console for progress, remarks and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def emit(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document on stdout; numpy scalars and arrays, paths and tuples become plain JSON."""
    text = json.dumps(document, indent=2, ensure_ascii=False, default=_plain)
    sys.stdout.write(_NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found.group()), text) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    """What `json` cannot write by itself: arrays by `tolist`, anything else (paths) by its name."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def show_error(error: Exception) -> None:
    """One red paragraph on stderr, no trace."""
    from rich.text import Text

    stderr().print(Text.assemble(("error: ", "bold red"), (str(error), "red")), soft_wrap=True)


def remark(text: str) -> None:
    """A dim line on stderr."""
    from rich.text import Text

    stderr().print(Text(text, style="dim"), soft_wrap=True)


def warn(text: str) -> None:
    """A yellow line on stderr, for what is done otherwise than it was asked for."""
    from rich.text import Text

    stderr().print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()
) -> Table:
    """A plain table; the columns in `numbers` are aligned to the right. Cells are literal, not markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        result.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    return result


@contextmanager
def progress(quiet: bool = False) -> Iterator[ProgressBars]:
    """Progress bars on stderr, one for each label that is reported; `quiet` draws nothing."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=stderr(),
        disable=quiet,
    )
    with bars:
        yield ProgressBars(bars)


class ProgressBars:
    """Called as `report(what, done, total)`; the first word of `what` decides which bar it moves."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: float, total: float) -> None:
        """Show `done` of `total`: `tracing vision` and then `tracing embed` move one bar, `tracing`."""
        word = what.partition(" ")[0]
        if word not in self._tasks:
            self._tasks[word] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[word], description=what, completed=done, total=total)


def one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a word that is not allowed.

    Raises:
        UsageError: naming the option and what it takes.
    """
    if value not in allowed:
        raise UsageError(
            f"{option} cannot be '{value}'", wanted=" or ".join(allowed), mend="choose one of these"
        )


def save_picture(picture: Image, path: Path) -> None:
    """Write a picture, with the folders that it needs.

    Raises:
        UsageError: the name has no known ending, or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except ValueError as error:
        raise UsageError(
            "a picture cannot be of this kind", found=str(path), wanted="a name ending in .png"
        ) from error
    except OSError as error:
        raise UsageError(
            f"the picture {path} cannot be written", found=str(error.strerror or error)
        ) from error


def size(count: int) -> str:
    """`12.3 MB`: bytes in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def milliseconds(seconds: float) -> str:
    """`12.3 ms`, or seconds from ten seconds on."""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds * 1000:.1f} ms"
