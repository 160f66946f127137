"""`foveate families`: which checkpoints can be exported, and what each kind of them can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.tools.cli import output

if TYPE_CHECKING:
    from foveate.tools.families import FamilyInfo

EXAMPLES = (
    ("foveate families", "every family with its scores, images, videos and positions"),
    ("foveate families llava", "one of them, with checkpoints and what it does not do"),
    ("foveate families --json", "the same for a script"),
)


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="FAMILY", help="Show this one only, with all that is known.")
    ] = None,
    json_output: output.JsonFlag = False,
) -> None:
    """List the families: which checkpoints can be exported, what prunes them, what they take.

    A family is what [cyan]model_type[/] in a checkpoint's config.json says. All of them are pruned at both
    sites, after the encoder and inside the decoder.
    """
    from foveate.tools.families import DTYPES, describe_family, list_families

    found = (describe_family(name),) if name else list_families()
    if json_output:
        output.emit([family.to_dict() for family in found])
        return
    out = output.stdout()
    out.print(_details(found[0]) if name else _overview(found))
    out.print(f"[dim]weights: {', '.join(DTYPES)}; the graphs compute in float32[/]")


def _overview(families: tuple[FamilyInfo, ...]) -> Any:
    rows = [(f.model_type, f["title"], f.takes, f.positions, ", ".join(f["scores"])) for f in families]
    table = output.table("Families", ("model_type", "family", "takes", "positions", "encoder scores"), rows)
    table.columns[0].no_wrap = True
    return table


def _details(family: FamilyInfo) -> Any:
    rows = [
        ("checkpoints", "\n".join(family["checkpoints"])),
        ("text models", ", ".join(family["text_models"])),
        ("default plan", " ".join(family["default_plan"])),
        ("encoder scores", ", ".join(family["scores"])),
        ("visual tokens", family["visual_tokens"]),
        ("takes", family.takes),
        ("video", family["video"] or "-"),
        ("positions", family.positions),
        ("not done", "\n".join(family["differs"]) or "-"),
    ]
    return output.table(f"{family.model_type}: {family['title']}", ("", ""), rows)
