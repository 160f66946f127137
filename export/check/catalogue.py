"""Every rule by name, with its severity and source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from foveate.export.check.nodes import DISPATCH
from foveate.export.check.operators import operators
from foveate.export.check.rule import CUSTOM_OPS, IMPORTERS, Mark, Operator, Severity
from foveate.export.check.whole import RULES

# Told by how a node's operator is found in the table at all.
_LOOKUP = (("mistaken", DISPATCH), ("contrib", DISPATCH), ("unlisted", IMPORTERS), ("flavour", CUSTOM_OPS))


@dataclass(frozen=True)
class Entry:
    """A rule: its name, and how it is known."""

    rule: str
    severity: Severity
    source: str
    mark: Mark


def all_rules() -> tuple[Entry, ...]:
    """All of them: of the whole graph first, then operator by operator."""
    whole = [Entry(f"graph.{rule.name}", rule.severity, rule.source, rule.mark) for rule in RULES]
    whole += [Entry(f"graph.{name}", Severity.ERROR, source, "source") for name, source in _LOOKUP]
    return (*whole, *(entry for name, row in operators().items() for entry in _of(name, row)))


def _of(name: str, row: Operator) -> Iterator[Entry]:
    for part in _parts(row):
        yield Entry(f"{name}.{part}", Severity.ERROR, row.source, row.mark)
    for rule in row.rules:
        yield Entry(f"{name}.{rule.name}", rule.severity, rule.source, rule.mark)


def _parts(row: Operator) -> Iterator[str]:
    """What a row says besides its own rules."""
    if row.dtypes is None:
        yield "unsupported"
        return
    if row.since:
        yield "version"
    if row.typed != ():
        yield "dtype"
    if row.equal != ():
        yield "mixed"
    if row.initializers:
        yield "initializer"
    if row.constants:
        yield "constant"
    if row.outputs is not None:
        yield "outputs"
