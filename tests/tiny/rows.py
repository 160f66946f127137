"""A row of the parity table. Every family's file in this folder has some: `ROWS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BOTH = ("fused", "segmented")


@dataclass(frozen=True)
class Row:
    """One checkpoint and one export of it, by name (what stands before the first `,` or `:` is unique).

    `checkpoint` are options of the family's `make`; `cases` are names of `foveate.tools.parity.prompts`'
    cases (none: all that the family has). `slow` rows climb with `make slow` only: CI has time for one
    row of each family, and for a few that show methods.
    """

    name: str
    plan: tuple[str, ...]
    layouts: tuple[str, ...] = ("fused",)
    positions: str | None = None
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    cases: tuple[str, ...] = ("image in the middle", "two images", "text only")
    family: str = "llava"
    slow: bool = False
