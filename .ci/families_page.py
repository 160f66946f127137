"""Rewrites docs/families.md from the FACTS of the families; `make format` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

from foveate.tools.families import DTYPES, FamilyInfo, list_families

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
HEAD = """\
# Families

A family is what `model_type` in a checkpoint's `config.json` says. `foveate families` prints the same facts;
`make format` writes this page from the literals in `export/families/`, so change it there.

"""
TAIL = """\

## What all of them share

| part | what is read |
|---|---|
| files | one or several safetensors files; weight names of transformers 5 and the older ones |
| weights | {dtypes}; the graphs compute in float32 |
| text model | grouped-query attention, rotary positions with their scaling types; tied or untied head |
| pruning | after the encoder and, any number of times, inside the decoder: [methods](methods.md) |

Weights are attached while they are written, so memory stays far below the size of the model. A missing, extra
or misshapen tensor is named, and so is a key of `config.json` that does not fit. Quantised checkpoints are
refused.

Encoder scores belong to methods: `cls_full`, `cls_mean` and `cosine` to `cls-knee`, which needs a CLS token;
`received`, `pooled` and `prompt` to `saliency-knee`. `pooled` also needs SigLIP's pooling head
(`vision_use_head`), which most published checkpoints leave out. `random` works everywhere.

A family of your own: [add a family](add-a-family.md).
"""


def page() -> str:
    """The whole page."""
    families = list_families()
    rows = [_row(family) for family in families]
    head = ("| `model_type` | family | takes | default plan |", "|---|---|---|---|")
    sections = [_section(family) for family in families]
    return HEAD + "\n".join([*head, *rows, "", *sections]) + TAIL.format(dtypes=_listed(DTYPES))


def _row(family: FamilyInfo) -> str:
    anchor = f"[`{family.model_type}`](#{family.model_type})"
    plan = " ".join(f"`{cut}`" for cut in family["default_plan"])
    return f"| {anchor} | {family['title']} | {family.takes} | {plan} |"


def _section(family: FamilyInfo) -> str:
    facts = [
        ("checkpoints", ", ".join(f"`{name}`" for name in family["checkpoints"])),
        ("text models", ", ".join(f"`{name}`" for name in family["text_models"])),
        ("visual tokens", family["visual_tokens"]),
        ("video", family["video"]),
        ("encoder scores", ", ".join(f"`{name}`" for name in family["scores"])),
        ("positions", family.positions),
    ]
    table = [f"| {name} | {value} |" for name, value in facts if value]
    lines = [f"## `{family.model_type}`", "", f"{family['title']}.", "", "| | |", "|---|---|", *table]
    if family["differs"]:
        lines += ["", "Otherwise than in transformers:", "", *(f"- {line}" for line in family["differs"])]
    return "\n".join([*lines, ""])


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def main() -> None:
    """Rewrite the page; with `--check` only say whether it is up to date."""
    old, new = PAGE.read_text(encoding="utf-8"), page()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == old else "docs/families.md is out of date: run make format")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
