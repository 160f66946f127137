"""The entry point of `foveate`: registers the verbs, prints errors, turns them into exit codes."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from foveate.runtime.errors import FoveateError
from foveate.tools.cli import output

# Verb -> the panel of `foveate --help` that it stands in; the order is the order of the help.
VERBS = {
    "demo": "Start here",
    "export": "The road: checkpoint to tokens",
    "build": "The road: checkpoint to tokens",
    "run": "The road: checkpoint to tokens",
    "verify": "The road: checkpoint to tokens",
    "eval": "The road: checkpoint to tokens",
    "bench": "The road: checkpoint to tokens",
    "search": "Tune",
    "train": "Tune",
    "plan": "Tune",
    "inspect": "Look around",
    "check": "Look around",
    "families": "Look around",
    "methods": "Look around",
    "doctor": "Look around",
}

INTERRUPTED = 130  # 128 + SIGINT, as shells count

EPILOG = """[bold]First steps[/]

[cyan]foveate demo[/]
  [dim]everything at once, on the built-in model[/]
[cyan]foveate export PATH -o bundle[/]
  [dim]your checkpoint, with pruning inside the graphs[/]
[cyan]foveate run bundle --image cat.jpg --prompt "What is this?"[/]
  [dim]the answer as it comes, and what was kept[/]

[dim]Exit codes: 0 done · 2 option · 3 checkpoint · 4 bundle · 5 parity · 6 package · 7 input · 8 export[/]
[dim]9 backend · 10 nothing pruned · 11 request · 12 check · 130 interrupted · 1 a bug, with its trace[/]"""


def build_app() -> typer.Typer:
    """The typer application with every verb registered."""
    app = typer.Typer(
        name="foveate",
        rich_markup_mode="rich",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # a bug keeps its plain trace
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=EPILOG,
    )
    app.callback(help=_unwrap(_root.__doc__))(_root)
    for verb, panel in VERBS.items():
        module = importlib.import_module(f"foveate.tools.cli.{verb}")
        register = app.command(
            verb,
            help=_unwrap(module.command.__doc__),
            epilog=_examples(module.EXAMPLES),
            rich_help_panel=panel,
        )
        register(_guard(module.command))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    build_app()(args=None if arguments is None else list(arguments), prog_name="foveate")


def _version(wanted: bool) -> None:
    """Eager, so that `foveate --version` needs no verb."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"foveate {version('foveate')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    """Vision-language models that look only where it matters.

    Foveate exports a Hugging Face checkpoint with visual-token pruning [bold]inside[/] the graphs, runs it
    without torch, and proves that it computes what PyTorch computes. Write [cyan]demo[/] wherever a
    checkpoint or a bundle is expected to use the built-in model.
    """


def _unwrap(text: str | None) -> str:
    """A docstring with each paragraph on one line: the terminal's width breaks it, not ours."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n"))


def _examples(examples: Sequence[tuple[str, str]]) -> str:
    """The epilogue of a verb's help: each command line with what it does."""
    from rich.markup import escape

    lines = [f"[cyan]{escape(line)}[/]\n  [dim]{escape(meaning)}[/]" for line, meaning in examples]
    return "\n\n".join(["[bold]Examples[/]", *lines])


def _guard(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print a `FoveateError` without a trace and leave with its code; everything else is a bug and passes."""

    @functools.wraps(command)
    def guarded(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except FoveateError as error:
            output.show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            output.remark("\ninterrupted")
            raise typer.Exit(INTERRUPTED) from None

    return guarded


if __name__ == "__main__":
    main()
