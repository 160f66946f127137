"""Short ways to a ladder, for the tests in this folder."""

from __future__ import annotations

from foveate.tools.parity.ladder import Settings
from foveate.tools.parity.prompts import CASES


def settings(*names: str, budgets: tuple[str, ...] = ("own rule", "ratio", "tokens")) -> Settings:
    """Settings for the named cases (none: all)."""
    cases = tuple(case for case in CASES if case.name in names) or CASES
    return Settings(cases=cases, budgets=budgets, new_tokens=10, threads=1)
