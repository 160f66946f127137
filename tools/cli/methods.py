"""`foveate methods`: what can choose tokens, where, and with which options."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.pruning.registry import MethodInfo

EXAMPLES = (
    ("foveate methods", "every method with its site, kind and paper"),
    ("foveate methods cls-knee", "the options of one of them, with their limits"),
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
        rows = [(m.name, " ".join(map(str, m.sites)), m.kind, m.summary, m.paper or "-") for m in found]
        out.print(output.table("Methods", ("method", "site", "kind", "what it does", "paper"), rows))
        out.print("[dim]options of one: foveate methods NAME   pages: docs/methods/[/]")
    else:
        out.print(_options(found[0]))
        if found[0].schedule:
            out.print(f"[dim]without a layer it cuts after {_schedule(found[0])}[/]")
    out.print(
        "[dim]write: --method NAME:OPTION=VALUE,OPTION=VALUE   in the decoder: --method NAME@LAYER:...   "
        "several cuts: NAME@LAYER+LAYER[/]"
    )


def _schedule(method: MethodInfo) -> str:
    """`25 % of the layers (share=0.5), 50 % ...`, or `2 layers`."""
    places = []
    for place, own in method.schedule:
        where = f"{place} layers" if isinstance(place, int) else f"{place:.0%} of the layers"
        options = ", ".join(f"{name}={value}" for name, value in own.items())
        places.append(where + (f" ({options})" if options else ""))
    return ", ".join(places)


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
        "kind": method.kind,
        "title": method.title,
        "paper": method.paper,
        "schedule": [{"place": place, "options": dict(own)} for place, own in method.schedule],
        "options": options,
    }
