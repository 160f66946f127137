"""Short ways to a ladder, for the tests in this folder."""

from __future__ import annotations

from pathlib import Path

from foveate.runtime.bundle import Bundle
from foveate.tools.parity.ladder import Settings
from foveate.tools.parity.prompts import CASES, Front


def make_front(checkpoint: Path, bundle: Bundle) -> Front:
    """transformers' processor of a checkpoint."""
    model = bundle.manifest.model
    return Front(checkpoint, model.image_token_id, model.visual_tokens_per_image)


def settings(*names: str, budgets: tuple[str, ...] = ("own rule", "ratio", "tokens")) -> Settings:
    """Settings for the named cases (none: all)."""
    cases = tuple(case for case in CASES if case.name in names) or CASES
    return Settings(cases=cases, budgets=budgets, new_tokens=10, threads=1)
