"""The rules about operators as data: a file per kind, each with `ROWS`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from foveate.export.check.operators import (
    attention,
    control,
    custom,
    elementwise,
    products,
    quantised,
    selection,
    shapes,
    unsupported,
)
from foveate.export.check.rule import Operator

_FILES = (
    elementwise,
    shapes,
    selection,
    products,
    attention,
    quantised,
    control,
    custom,
    unsupported,
)


@cache
def operators() -> Mapping[str, Operator]:
    """Every operator that something is known about, by its name; the domain means nothing to the parser."""
    rows = [row for file in _FILES for row in file.ROWS]
    found = {name: row for row in rows for name in row.names}
    assert len(found) == sum(len(row.names) for row in rows), "an operator stands in two rows"
    return found
