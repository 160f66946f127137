"""`foveate methods`: what can choose tokens, where, and with which options."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.pruning.registry import MethodInfo

EXAMPLES = (
    ("foveate methods", "every method with its sites, options and paper"),
    ("foveate methods cls-knee", "one of them, with the limits of its options"),
    ("foveate methods --json", "the same for a script"),
)


def command(
    name: Annotated[str | None, typer.Argument(metavar="METHOD", help="Show this one only.")] = None,
    json_output: output.JsonFlag = False,
) -> None:
    """List the pruning methods: where they cut, what they choose by, their options and their paper.

    What is listed here is what [cyan]foveate export --method[/] takes. A package of yours adds to the list
    through the entry-point group [cyan]foveate.methods[/].
    """
    from foveate.pruning.registry import describe_method, list_methods

    found = (describe_method(name),) if name else list_methods()
    if json_output:
        output.emit([_plain(method) for method in found])
        return
    out = output.stdout()
    if name is None:
        rows = [(m.name, " ".join(map(str, m.sites)), m.summary, m.paper or "-") for m in found]
        out.print(output.table("Methods", ("method", "site", "keeps", "paper"), rows))
    for method in found:
        out.print(_options(method))
    out.print(
        "[dim]write: --method NAME:OPTION=VALUE,OPTION=VALUE   in the decoder: --method NAME@LAYER:...[/]"
    )


def _options(method: MethodInfo) -> Any:
    rows = [(o.name, _shown(o.default), o.wanted(), o.help) for o in method.options]
    title = f"{method.name}: {method.summary}"
    return output.table(title, ("option", "default", "takes", "what it does"), rows)


def _shown(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(method: MethodInfo) -> dict[str, Any]:
    options = [{**asdict(option), "wanted": option.wanted()} for option in method.options]
    sites = [str(site) for site in method.sites]
    return {
        "name": method.name,
        "summary": method.summary,
        "sites": sites,
        "paper": method.paper,
        "options": options,
    }
