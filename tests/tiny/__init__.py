"""Tiny seeded checkpoints, made with transformers' own classes: the input and the oracle of most tests.

One file per family, each with `make(path, **options)` and its rows of the parity table, `ROWS`. Shapes are
awkward on purpose (odd group sizes, unequal widths, a 5 x 5 grid): a swapped axis cannot pass.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from tiny.llava import IMAGE_SIZE, PATCH_SIZE
from tiny.llava import make as make_llava
from tiny.rows import Row
from tiny.shared import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    TEXT_CONFIGS,
    VOCABULARY,
    edit_config,
    make_image,
    make_tokenizer,
)

__all__ = [
    "CHAT_TEMPLATE",
    "IMAGE_SIZE",
    "IMAGE_TOKEN",
    "PATCH_SIZE",
    "TEXT_CONFIGS",
    "VOCABULARY",
    "all_rows",
    "edit_config",
    "make",
    "make_image",
    "make_llava",
    "make_tokenizer",
]


def make(family: str, path: Path, **options: Any) -> Path:
    """Writes a tiny checkpoint folder of a family and returns it."""
    made: Path = importlib.import_module(f"tiny.{family}").make(path, **options)
    return made


def all_rows() -> tuple[Row, ...]:
    """The parity table's rows of all families."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"tiny.{name}") for name in names]
    return tuple(row for module in modules for row in getattr(module, "ROWS", ()))
